-- Return whether a counter holds nothing and its window or ring has passed.
CREATE OR REPLACE FUNCTION public.limit_is_idle(l public.limits, instant timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT l.held = 0
       AND CASE
           WHEN l.period IS NULL OR l.used = 0 AND l.buckets IS NULL THEN true
           WHEN l.buckets IS NULL THEN l.window_start < public.limit_window(l.period, instant)
           ELSE l.bucket_at
                < instant - 61 * public.limit_bucket_s(l.unit, l.period) * interval '1 second'
       END
$$;
