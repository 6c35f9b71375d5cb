-- Count entries on limits: add what their calls used, give back what they held.
--
-- The entries are returned with the windows in which they were counted. Limits that are not
-- locked are passed over.
CREATE OR REPLACE FUNCTION public.count_entries(
    INOUT limits public.limit_state[], INOUT entries public.ledger_entries[]
)
LANGUAGE plpgsql AS $$
DECLARE
    limit_ids uuid[];
    entry public.ledger_entries;
    state public.limit_state;
    used bigint;
    held bigint;
    place integer;
    slot integer;
BEGIN
    FOREACH state IN ARRAY limits LOOP
        limit_ids := limit_ids || state.id;
    END LOOP;
    FOR m IN 1 .. cardinality(entries) LOOP
        entry := entries[m];
        FOR n IN 1 .. cardinality(entry.limit_ids) LOOP
            place := array_position(limit_ids, entry.limit_ids[n]);
            CONTINUE WHEN place IS NULL;
            state := limits[place];
            used := CASE WHEN state.unit = 'concurrency' THEN 0
                         ELSE public.amount_of(
                             state.unit, entry.cost_nanos, entry.tokens, entry.requests
                         ) END;
            held := CASE WHEN entry.kind <> 'call' THEN 0
                         ELSE public.amount_of(
                             state.unit, entry.bound_nanos, entry.bound_tokens, 1
                         ) END;
            IF state.bucket_s IS NULL THEN
                state.used := state.used + used;
                state.held := state.held - held;
                entry.limit_windows[n] := state.window_at;
            ELSIF entry.limit_windows[n]
                > state.window_at - 61 * state.bucket_s * interval '1 second'
            THEN
                -- Its bound was counted as used when it was admitted. What was not used is given
                -- back in the same bucket.
                slot := public.slot_of(entry.limit_windows[n], state.bucket_s);
                state.ring[slot] := state.ring[slot] + used - held;
                state.used := state.used + used - held;
            END IF;
            state.is_changed := true;
            limits[place] := state;
        END LOOP;
        entries[m] := entry;
    END LOOP;
END
$$;
