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
    limits public.limit_state[];
    ids uuid[];
    state public.limit_state;
    i integer;
    slot integer;
BEGIN
    SELECT l.limits INTO limits
    FROM public.lock_limits(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = repaired_organization_id
              AND l.id = ANY (limit_ids)
        ),
        NULL, NULL, NULL
    ) l;
    SELECT array_agg(l.id) INTO ids FROM unnest(limits) l;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        state := limits[i];
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := state.held;
            state.held := stands - drifts[n];
        ELSIF state.bucket_s IS NULL THEN
            CONTINUE WHEN state.window_at <> counted[n];
            stands := state.used;
            state.used := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n]
                <= state.window_at - 61 * state.bucket_s * interval '1 second';
            slot := public.slot_of(counted[n], state.bucket_s);
            stands := state.ring[slot];
            state.ring[slot] := stands - drifts[n];
        END IF;
        state.is_changed := true;
        limits[i] := state;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(limits);
END
$$;
