-- Return the start of the window that an instant falls into.
--
-- STABLE rather than IMMUTABLE: PostgreSQL inlines the body only when the volatility is the body's
-- own.
CREATE OR REPLACE FUNCTION public.limit_window(period text, instant timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN period = 'lifetime' OR period IS NULL THEN 'epoch'
                ELSE date_trunc(period, instant, 'UTC') END
$$;
