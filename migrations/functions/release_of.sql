-- Return the entry of a hold that used nothing.
--
-- It is counted, which gives back what the hold held, and never written.
CREATE OR REPLACE FUNCTION public.release_of(
    held_nanos bigint, held_tokens bigint, held_limit_ids uuid[], held_windows timestamptz[]
)
RETURNS public.entry_row
LANGUAGE plpgsql AS $$
DECLARE
    entry public.entry_row;
BEGIN
    entry.kind := 'call';
    entry.requests := 0;
    entry.tokens := 0;
    entry.cost_nanos := 0;
    entry.bound_nanos := held_nanos;
    entry.bound_tokens := held_tokens;
    entry.limit_ids := held_limit_ids;
    entry.limit_windows := held_windows;
    RETURN entry;
END
$$;
