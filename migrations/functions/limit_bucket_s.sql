-- Return the length in seconds of a sliding limit's buckets, or null for a limit with windows.
--
-- Requests and tokens of a minute or an hour slide over 60 full buckets and the one that is
-- filling. All other periods have windows: calendar ones in UTC, or one that never ends.
CREATE OR REPLACE FUNCTION public.limit_bucket_s(unit text, period text) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN unit IN ('requests', 'tokens')
                THEN CASE period WHEN 'minute' THEN 1 WHEN 'hour' THEN 60 END END
$$;
