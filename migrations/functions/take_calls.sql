-- Admit calls in order. Each takes its hold on all of its limits, or on none.
--
-- taken are the holds to be written; a moved call has its own already, which is changed here. There
-- is a result for each call.
CREATE OR REPLACE FUNCTION public.take_calls(
    calls jsonb, applying public.applying_limits, child_ids uuid[], process_id uuid,
    lease interval, decided_at timestamptz,
    INOUT limits public.limit_state[], OUT taken public.holds[], OUT results public.batch_result[]
)
LANGUAGE plpgsql AS $$
DECLARE
    call record;
    hold public.holds;  -- the one that the call has already
    before public.limit_state[];
    counted record;
    bounds record;
    result public.batch_result;
    place integer;
    state public.limit_state;
    need bigint;
    slot integer;
BEGIN
    results := '{}';
    FOR call IN
        SELECT c.*
        FROM public.standing_of_calls(calls, applying, child_ids, limits, decided_at) c
    LOOP
        IF call.is_moved OR call.standing = 'repeated' THEN
            SELECT h.* INTO hold
            FROM public.holds h
            WHERE h.organization_id = call.organization_id
              AND h.id = call.id;
            IF call.is_moved AND hold.id IS NULL THEN
                -- Another session has settled the call since its standing was read.
                call.standing := 'not_held';
            END IF;
        END IF;
        IF call.standing <> 'admitted' THEN
            result := NULL;
            result.number := call.place;
            result.verdict := call.standing;
            IF call.standing = 'repeated' THEN
                result.verdict := 'admitted';
                result.granted_nanos := hold.bound_nanos;
                result.granted_tokens := hold.bound_tokens;
            END IF;
            results := results || result;
            CONTINUE;
        END IF;

        IF call.is_moved THEN
            before := limits;
            counted := public.count_entries(limits, ARRAY[public.released(hold)]);
            limits := counted.limits;
        END IF;
        IF call.least_tokens IS NOT NULL THEN
            bounds := public.affordable(
                limits, call.limit_places, call.least_nanos, call.least_tokens,
                call.bound_nanos, call.bound_tokens
            );
            call.bound_nanos := bounds.nanos;
            call.bound_tokens := bounds.tokens;
        END IF;
        result := public.refusal_of(
            limits, call.limit_places, call.bound_nanos, call.bound_tokens, decided_at
        );
        IF result.verdict IS NULL THEN
            result.verdict := 'admitted';
            FOREACH place IN ARRAY call.limit_places LOOP
                state := limits[place];
                need := public.amount_of(state.unit, call.bound_nanos, call.bound_tokens, 1);
                IF state.bucket_s IS NULL THEN
                    state.held := state.held + need;
                ELSE
                    slot := public.slot_of(state.window_at, state.bucket_s);
                    state.ring[slot] := state.ring[slot] + need;
                    state.used := state.used + need;
                END IF;
                state.is_changed := true;
                limits[place] := state;
            END LOOP;
            IF call.is_moved THEN
                -- Changed in its place, so that a settlement that waits for the row finds it.
                UPDATE public.holds h
                SET model = call.model,
                    is_stream = call.is_stream,
                    bound_nanos = call.bound_nanos,
                    bound_tokens = call.bound_tokens,
                    limit_ids = call.limit_ids,
                    limit_windows = call.limit_windows,
                    lease_until = decided_at + lease,
                    requested_model = call.requested_model,
                    price_version = call.price_version
                WHERE h.organization_id = call.organization_id
                  AND h.id = call.id;
            ELSE
                -- In the order of the table's columns.
                taken := taken || ROW(
                    call.organization_id, call.id, call.api_key_id, call.end_user, call.request_id,
                    call.endpoint, call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                    call.limit_ids, call.limit_windows, process_id, decided_at + lease,
                    call.price_version, NULL, NULL, call.tags, decided_at, call.requested_model
                )::public.holds;
            END IF;
        ELSIF call.is_moved THEN
            limits := before;
        END IF;
        result.number := call.place;
        result.granted_nanos := call.bound_nanos;
        result.granted_tokens := call.bound_tokens;
        results := results || public.with_rates(result, limits, call.limit_places, decided_at);
    END LOOP;
END
$$;
