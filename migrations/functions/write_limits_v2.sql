-- Write the counters of locked limits back where they have changed.
--
-- locked is what lock_limits_v2() returned; limits, used and held are those of now. What a ring holds
-- is what this batch has admitted: it counts in the newest bucket. A window that has rolled begins
-- without carried use and without alerts. How plans are made is set by the function that calls this
-- one, as for all steps of settle_and_admit().
CREATE OR REPLACE FUNCTION public.write_limits_v2(
    locked record, limits public.locked_limit[], used bigint[], held bigint[]
)
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    written public.written_limit[] := '{}';
    slot integer;
BEGIN
    FOR n IN 1 .. cardinality(limits) LOOP
        IF limits[n].bucket_s IS NULL THEN
            CONTINUE WHEN held[n] = locked.held[n] AND used[n] = locked.used[n];
            written := written || ROW(
                limits[n].id, used[n], held[n], limits[n].is_rolled, limits[n].window_at, NULL, NULL
            )::public.written_limit;
        ELSE
            CONTINUE WHEN held[n] = 0 AND NOT limits[n].is_changed;
            slot := public.slot_of(limits[n].window_at, limits[n].bucket_s);
            limits[n].ring[slot] := limits[n].ring[slot] + held[n];
            written := written || ROW(
                limits[n].id, 0, 0, false, NULL, limits[n].ring, limits[n].window_at
            )::public.written_limit;
        END IF;
    END LOOP;
    UPDATE public.limits l
    SET held = n.held,
        used = n.used,
        carried = CASE WHEN n.is_rolled THEN 0 ELSE l.carried END,
        alerted_percent = CASE WHEN n.is_rolled THEN 0 ELSE l.alerted_percent END,
        window_start = n.window_start,
        buckets = n.buckets,
        bucket_at = n.bucket_at
    FROM unnest(written) n
    WHERE l.id = n.id;
END
$$;
