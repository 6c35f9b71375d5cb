-- Return how much of a limit's unit a call takes.
CREATE OR REPLACE FUNCTION public.amount_of(unit text, nanos bigint, tokens bigint, calls integer)
RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE unit WHEN 'usd' THEN nanos WHEN 'tokens' THEN tokens ELSE calls END
$$;
