-- Return the bounds that a call's limits can afford, but never less than its least.
--
-- A bound in money that is not known stays unknown, whatever is left.
CREATE OR REPLACE FUNCTION public.affordable_v2(
    limits public.locked_limit[], used bigint[], held bigint[], places integer[],
    least_nanos bigint, least_tokens bigint, INOUT nanos bigint, INOUT tokens bigint
)
LANGUAGE plpgsql AS $$
DECLARE
    place integer;
    remaining bigint;
BEGIN
    FOREACH place IN ARRAY places LOOP
        remaining := limits[place].ceiling - used[place] - held[place];
        IF limits[place].unit = 'usd' AND nanos IS NOT NULL THEN
            nanos := least(nanos, greatest(remaining, least_nanos));
        ELSIF limits[place].unit = 'tokens' THEN
            tokens := least(tokens, greatest(remaining, least_tokens));
        END IF;
    END LOOP;
END
$$;
