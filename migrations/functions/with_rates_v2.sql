-- Add the tightest rates of the caller to a result, as they are after the call.
CREATE OR REPLACE FUNCTION public.with_rates_v2(
    result public.batch_result, limits public.locked_limit[], used bigint[], held bigint[],
    rate_places integer[], decided_at timestamptz
)
RETURNS public.batch_result
LANGUAGE plpgsql AS $$
DECLARE
    place integer;
    remaining bigint;
    reset_s integer;
BEGIN
    FOREACH place IN ARRAY rate_places LOOP
        remaining := greatest(0, limits[place].ceiling - used[place] - held[place]);
        reset_s := ceil(
            extract(
                epoch FROM public.limit_ends_at(
                    limits[place].period, limits[place].bucket_s, limits[place].window_at
                ) - decided_at
            )
        );
        IF limits[place].unit = 'requests' THEN
            CONTINUE WHEN remaining >= result.requests_left;
            result.requests_ceiling := limits[place].ceiling;
            result.requests_left := remaining;
            result.requests_reset_s := reset_s;
        ELSE
            CONTINUE WHEN remaining >= result.tokens_left;
            result.tokens_ceiling := limits[place].ceiling;
            result.tokens_left := remaining;
            result.tokens_reset_s := reset_s;
        END IF;
    END LOOP;
    RETURN result;
END
$$;
