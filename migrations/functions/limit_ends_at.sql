-- Return when all that counts on a limit now will count no more, or null when it always will.
CREATE OR REPLACE FUNCTION public.limit_ends_at(
    period text, bucket_s integer, window_at timestamptz
)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN bucket_s IS NULL THEN public.limit_resets_at(period, window_at)
                ELSE window_at + 61 * bucket_s * interval '1 second' END
$$;
