-- Add the tightest rates of the caller to a result, as they are after the call.
CREATE OR REPLACE FUNCTION public.with_rates(
    result public.batch_result, limits public.limit_state[], places integer[],
    decided_at timestamptz
)
RETURNS public.batch_result
LANGUAGE plpgsql AS $$
DECLARE
    place integer;
    state public.limit_state;
    remaining bigint;
BEGIN
    FOREACH place IN ARRAY places LOOP
        state := limits[place];
        remaining := greatest(0, state.ceiling - state.used - state.held);
        IF state.unit = 'requests'
           AND remaining < coalesce(result.requests_left, remaining + 1) THEN
            result.requests_ceiling := state.ceiling;
            result.requests_left := remaining;
            result.requests_reset_s := ceil(extract(epoch FROM state.resets_at - decided_at));
        ELSIF state.unit = 'tokens' AND remaining < coalesce(result.tokens_left, remaining + 1) THEN
            result.tokens_ceiling := state.ceiling;
            result.tokens_left := remaining;
            result.tokens_reset_s := ceil(extract(epoch FROM state.resets_at - decided_at));
        END IF;
    END LOOP;
    RETURN result;
END
$$;
