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
    owner_ids uuid[];           -- the organizations of limits
    keys record;
    ends record;
    call record;
    caller text := '';          -- the one for whom places were computed
    hold public.holds;          -- the one that the call has already
    places integer[] := '{}';   -- in limits, of those that bind the call
    before public.limit_state[];
    bounds record;
    result public.batch_result;
    place integer;
    state public.limit_state;
    need bigint;
    slot integer;
    limit_ids uuid[];
    limit_windows timestamptz[];
BEGIN
    results := '{}';
    owner_ids := public.owners_of(limits);
    keys := public.standings_of_keys(public.member_ids(calls, 'api_key_id'), decided_at);
    ends := public.ends_of(public.member_ids(calls, 'id'));
    FOR call IN
        SELECT c.*
        FROM public.standings_of_calls(
            calls, ends.first_id, ends.last_id, keys.ids, keys.organization_ids, keys.standings
        ) c
    LOOP
        IF call.is_moved OR call.standing = 'repeated' THEN
            hold := public.hold_of(call.organization_id, call.id);
            IF call.is_moved AND hold.id IS NULL THEN
                call.standing := 'not_held';
            END IF;
        END IF;
        result := NULL;
        result.number := call.place;
        IF call.standing <> 'admitted' THEN
            result.verdict := call.standing;
            IF call.standing = 'repeated' THEN
                result.verdict := 'admitted';
                result.granted_nanos := hold.bound_nanos;
                result.granted_tokens := hold.bound_tokens;
            END IF;
            results := results || result;
            CONTINUE;
        END IF;

        IF call.caller <> caller AND cardinality(limits) > 0 THEN
            caller := call.caller;
            places := public.places_binding(
                limits, owner_ids, applying, child_ids, call.organization_id, call.api_key_id,
                call.end_user, call.model
            );
        END IF;
        IF call.is_moved THEN
            before := limits;
            limits := public.without_hold(limits, hold);
        END IF;
        IF call.least_tokens IS NOT NULL THEN
            bounds := public.affordable(
                limits, places, call.least_nanos, call.least_tokens, call.bound_nanos,
                call.bound_tokens
            );
            call.bound_nanos := bounds.nanos;
            call.bound_tokens := bounds.tokens;
        END IF;
        IF cardinality(places) > 0 THEN
            result := public.refusal_of(
                limits, places, call.bound_nanos, call.bound_tokens, decided_at
            );
            result.number := call.place;
        END IF;
        IF result.verdict IS NULL THEN
            result.verdict := 'admitted';
            limit_ids := '{}';
            limit_windows := '{}';
            FOREACH place IN ARRAY places LOOP
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
                limit_ids := limit_ids || state.id;
                limit_windows := limit_windows || state.window_at;
            END LOOP;
            IF call.is_moved THEN
                PERFORM public.move_hold(call, limit_ids, limit_windows, decided_at + lease);
            ELSE
                -- In the order of the table's columns.
                taken := taken || ROW(
                    call.organization_id, call.id, call.api_key_id, call.end_user, call.request_id,
                    call.endpoint, call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                    limit_ids, limit_windows, process_id, decided_at + lease, call.price_version,
                    NULL, NULL, call.tags, decided_at, call.requested_model
                )::public.holds;
            END IF;
        ELSIF call.is_moved THEN
            limits := before;
        END IF;
        result.granted_nanos := call.bound_nanos;
        result.granted_tokens := call.bound_tokens;
        IF cardinality(places) > 0 THEN
            result := public.with_rates(result, limits, places, decided_at);
        END IF;
        results := results || result;
    END LOOP;
END
$$;
