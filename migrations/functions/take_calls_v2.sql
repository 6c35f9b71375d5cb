-- Admit calls in order. Each takes its hold on all of its limits, or on none.
--
-- used and held are those of limits. taken are the holds to be written; a moved call has its own
-- already, which is changed here. There is a result for each call.
--
-- Another call that has a hold is admitted already: an admission whose connection broke is repeated.
-- Its first statement may have held the limits, so that is read when they are locked.
CREATE OR REPLACE FUNCTION public.take_calls_v2(
    calls public.asking_call[], applying public.applying_limits, locked record, lease interval,
    INOUT limits public.locked_limit[], INOUT used bigint[], INOUT held bigint[],
    OUT taken public.hold_row[], OUT results public.batch_result[]
)
LANGUAGE plpgsql AS $$
DECLARE
    call public.asking_call;
    caller text := '';         -- the one for whom binding was computed
    binding record;
    repeated_ids uuid[];
    hold record;               -- the one that the call has already
    bounds record;
    kept record;               -- what a move that is refused leaves as it was
    freed record;
    result public.batch_result;
    place integer;
    is_refused boolean;
BEGIN
    taken := '{}';
    results := '{}';
    repeated_ids := public.repeated_of(calls);
    FOR number IN 1 .. cardinality(calls) LOOP
        call := calls[number];
        result := NULL;
        result.number := number;
        IF call.is_moved OR call.standing <> 'admitted' OR call.id = ANY (repeated_ids) THEN
            hold := public.hold_of_call(call.organization_id, call.id);
            result.verdict := CASE WHEN call.id = ANY (repeated_ids) THEN 'admitted'
                                   WHEN call.standing <> 'admitted' THEN call.standing
                                   WHEN hold.id IS NULL THEN 'not_held' END;
            IF result.verdict IS NOT NULL THEN
                result.granted_nanos := hold.bound_nanos;
                result.granted_tokens := hold.bound_tokens;
                results := results || result;
                CONTINUE;
            END IF;
        END IF;
        IF call.caller <> caller THEN
            caller := call.caller;
            binding := public.limits_of_caller(
                limits, locked.ids, call, applying, locked.child_ids
            );
        END IF;
        IF call.is_moved THEN
            SELECT limits, used, held INTO kept;
            freed := public.count_entries_v2(
                locked.ids, limits, used, held,
                ARRAY[
                    public.release_of(
                        hold.bound_nanos, hold.bound_tokens, hold.limit_ids, hold.limit_windows
                    )
                ]
            );
            limits := freed.limits;
            used := freed.used;
            held := freed.held;
        END IF;
        IF call.least_tokens IS NOT NULL THEN
            bounds := public.affordable_v2(
                limits, used, held, binding.places, call.least_nanos, call.least_tokens,
                call.bound_nanos, call.bound_tokens
            );
            call.bound_nanos := bounds.nanos;
            call.bound_tokens := bounds.tokens;
        END IF;
        is_refused := false;
        FOREACH place IN ARRAY binding.places LOOP
            -- Null, as for an amount that is not known, refuses.
            is_refused := (
                used[place] + held[place] + public.amount_of(
                    limits[place].unit, call.bound_nanos, call.bound_tokens, 1
                ) <= limits[place].ceiling
            ) IS NOT TRUE;
            EXIT WHEN is_refused;
        END LOOP;
        IF is_refused THEN
            result := public.refusal_by(
                limits, used, held, binding.places, call.bound_nanos, call.bound_tokens,
                locked.decided_at
            );
            result.number := number;
            IF call.is_moved THEN
                limits := kept.limits;
                used := kept.used;
                held := kept.held;
            END IF;
        ELSIF call.bound_nanos < 0 OR call.bound_tokens < 0 THEN
            RAISE EXCEPTION 'a bound is below zero' USING ERRCODE = 'check_violation';
        ELSE
            result.verdict := 'admitted';
            FOREACH place IN ARRAY binding.places LOOP
                held[place] := held[place] + public.amount_of(
                    limits[place].unit, call.bound_nanos, call.bound_tokens, 1
                );
            END LOOP;
            IF call.is_moved THEN
                PERFORM public.move_hold(
                    call, binding.limit_ids, binding.limit_windows, locked.decided_at + lease
                );
            ELSE
                taken := taken || ROW(
                    call.organization_id, call.id, call.api_key_id, call.end_user, call.request_id,
                    call.endpoint, call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                    binding.limit_ids, binding.limit_windows, call.price_version,
                    call.tags, call.requested_model
                )::public.hold_row;
            END IF;
        END IF;
        result.granted_nanos := call.bound_nanos;
        result.granted_tokens := call.bound_tokens;
        IF cardinality(binding.rate_places) > 0 THEN
            result := public.with_rates_v2(
                result, limits, used, held, binding.rate_places, locked.decided_at
            );
        END IF;
        results := results || result;
    END LOOP;
END
$$;
