-- Return whether the call of a hold has its entry already.
--
-- A late repetition of an admission can just miss that the call is over.
CREATE OR REPLACE FUNCTION public.is_over(hold public.holds) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    -- As in standings_of_calls().
    RETURN (
        SELECT true
        FROM public.ledger_entries x
        WHERE x.organization_id = hold.organization_id
          AND x.id BETWEEN hold.id AND hold.id
        ORDER BY x.id
        LIMIT 1
    ) IS NOT NULL;
END
$$;
