-- Return the entry of a hold that used nothing.
--
-- It is counted, which gives back what the hold held, and never written.
CREATE OR REPLACE FUNCTION public.released(hold public.holds) RETURNS public.ledger_entries
LANGUAGE plpgsql AS $$
DECLARE
    entry public.ledger_entries;
BEGIN
    entry.kind := 'call';
    entry.requests := 0;
    entry.tokens := 0;
    entry.cost_nanos := 0;
    entry.bound_nanos := hold.bound_nanos;
    entry.bound_tokens := hold.bound_tokens;
    entry.limit_ids := hold.limit_ids;
    entry.limit_windows := hold.limit_windows;
    RETURN entry;
END
$$;
