-- Return whether a call has its entry already.
--
-- A late repetition of an admission can just miss that the call is over.
CREATE OR REPLACE FUNCTION public.has_entry(call_organization_id uuid, call_id uuid)
RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    -- As in write_holds().
    RETURN (
        SELECT true
        FROM public.ledger_entries x
        WHERE x.organization_id = call_organization_id
          AND x.id BETWEEN call_id AND call_id
        ORDER BY x.id
        LIMIT 1
    ) IS NOT NULL;
END
$$;
