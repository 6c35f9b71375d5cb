-- Return whether the window or the ring of a counter has passed, so that nothing is used.
CREATE OR REPLACE FUNCTION public.is_idle(
    unit text, period text, used bigint, window_start timestamptz, buckets bigint[],
    bucket_at timestamptz, instant timestamptz
)
RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN period IS NULL OR used = 0 AND buckets IS NULL THEN true
                WHEN buckets IS NULL THEN window_start < public.limit_window(period, instant)
                ELSE bucket_at
                     < instant - 61 * public.limit_bucket_s(unit, period) * interval '1 second'
           END
$$;
