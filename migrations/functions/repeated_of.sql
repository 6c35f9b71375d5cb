-- Return which calls have a hold already, other than those that are moved.
CREATE OR REPLACE FUNCTION public.repeated_of(calls public.asking_call[]) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT c.id
        FROM unnest(calls) c
        WHERE c.is_moved IS NOT TRUE
          AND EXISTS (
              SELECT
              FROM public.holds h
              WHERE h.organization_id = c.organization_id
                AND h.id = c.id
              OFFSET 0  -- by its key, never by a join of all
          )
    );
END
$$;
