-- Return when a window ends, or null when it never does.
--
-- STABLE rather than IMMUTABLE: PostgreSQL inlines the body only when the volatility is the body's
-- own.
CREATE OR REPLACE FUNCTION public.limit_resets_at(period text, window_start timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN period <> 'lifetime'
                THEN (window_start AT TIME ZONE 'UTC' + ('1 ' || period)::interval)
                    AT TIME ZONE 'UTC' END
$$;
