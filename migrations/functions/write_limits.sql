-- Write the counters of locked limits back where they have changed.
--
-- A window that has rolled begins without carried use and without alerts. How plans are made is set
-- by the function that calls this one, as for all steps of settle_and_admit().
CREATE OR REPLACE FUNCTION public.write_limits(limits public.limit_state[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.limits l
    SET held = n.held,
        used = CASE WHEN n.bucket_s IS NULL THEN n.used ELSE l.used END,
        carried = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at THEN l.carried
                       ELSE 0 END,
        alerted_percent = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at
                               THEN l.alerted_percent
                               ELSE 0 END,
        window_start = CASE WHEN n.bucket_s IS NULL THEN n.window_at ELSE l.window_start END,
        buckets = CASE WHEN n.bucket_s IS NULL THEN l.buckets ELSE n.ring END,
        bucket_at = CASE WHEN n.bucket_s IS NULL THEN l.bucket_at ELSE n.window_at END
    FROM unnest(limits) n
    WHERE l.id = n.id
      AND n.is_changed;
END
$$;
