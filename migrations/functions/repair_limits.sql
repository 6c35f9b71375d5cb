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
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    locked record;
    limits public.locked_limit[];
    used bigint[];
    held bigint[];
    i integer;
    slot integer;
BEGIN
    locked := public.lock_limits_v2(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = repaired_organization_id
              AND l.id = ANY (limit_ids)
        ),
        NULL, NULL, NULL
    );
    limits := locked.limits;
    used := locked.used;
    held := locked.held;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(locked.ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := held[i];
            held[i] := stands - drifts[n];
        ELSIF limits[i].bucket_s IS NULL THEN
            CONTINUE WHEN limits[i].window_at <> counted[n];
            stands := used[i];
            used[i] := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n]
                <= limits[i].window_at - 61 * limits[i].bucket_s * interval '1 second';
            slot := public.slot_of(counted[n], limits[i].bucket_s);
            stands := limits[i].ring[slot];
            limits[i].ring[slot] := stands - drifts[n];
            limits[i].is_changed := true;
        END IF;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits_v2(locked, limits, used, held);
END
$$;
