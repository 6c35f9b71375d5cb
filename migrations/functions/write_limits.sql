-- Write the counters of locked limits back where they were touched.
--
-- A window that has rolled begins without carried use and without alerts.
CREATE OR REPLACE FUNCTION public.write_limits(
    ids uuid[], useds bigint[], helds bigint[], bucket_ss integer[], windows timestamptz[],
    rings bigint[], touched boolean[]
) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
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
        -- Number by number: a slice would copy all rings each time.
        buckets = CASE WHEN n.bucket_s IS NULL THEN l.buckets
                       ELSE ARRAY(SELECT rings[n.place][at] FROM generate_series(1, 61) at) END,
        bucket_at = CASE WHEN n.bucket_s IS NULL THEN l.bucket_at ELSE n.window_at END
    FROM unnest(ids, useds, helds, bucket_ss, windows, touched)
        WITH ORDINALITY AS n (id, used, held, bucket_s, window_at, is_touched, place)
    WHERE l.id = n.id
      AND n.is_touched;
END
$$;
