-- Return limits as they are without what a hold takes of them.
CREATE OR REPLACE FUNCTION public.without_hold(limits public.limit_state[], hold public.holds)
RETURNS public.limit_state[]
LANGUAGE plpgsql AS $$
DECLARE
    counted record;
BEGIN
    counted := public.count_entries(limits, ARRAY[public.released(hold)]);
    RETURN counted.limits;
END
$$;
