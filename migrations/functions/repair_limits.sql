-- Take the drifts that the audit found off the counters of limits.
--
-- For each drift: the limit, the counter ('used' or 'held'), its window or bucket, and the amount
-- by which the counter exceeds what is proven. Calls in flight move a counter and its proof alike,
-- so the drift stays valid while the audit, which takes no locks, is running. Windows and buckets
-- that have passed since then need no repair. Returns one row for each counter that was set.
CREATE OR REPLACE FUNCTION public.repair_limits(
    repaired_organization_id uuid, limit_ids uuid[], counters text[], counted timestamptz[],
    drifts bigint[]
) RETURNS TABLE (
    limit_id uuid, counter text, window_at timestamptz, stands bigint, proven bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked uuid[];
    ids uuid[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
    i integer;
    slot integer;
BEGIN
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.organization_id = repaired_organization_id
          AND l.id = ANY (limit_ids)
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;

    SELECT array_agg(l.id), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
           array_agg(l.window_at), array_agg(l.ring), array_agg(false)
    INTO ids, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, clock_timestamp()) l;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := helds[i];
            helds[i] := stands - drifts[n];
        ELSIF bucket_ss[i] IS NULL THEN
            CONTINUE WHEN windows[i] <> counted[n];
            stands := useds[i];
            useds[i] := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n] <= windows[i] - 61 * bucket_ss[i] * interval '1 second';
            slot := extract(epoch FROM counted[n])::bigint / bucket_ss[i] % 61 + 1;
            stands := rings[i][slot];
            rings[i][slot] := stands - drifts[n];
        END IF;
        touched[i] := true;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
END
$$;
