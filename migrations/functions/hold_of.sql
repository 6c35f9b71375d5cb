-- Return the hold that a call has, or null.
CREATE OR REPLACE FUNCTION public.hold_of(call_organization_id uuid, call_id uuid)
RETURNS public.holds
LANGUAGE plpgsql AS $$
DECLARE
    hold public.holds;
BEGIN
    SELECT h.* INTO hold
    FROM public.holds h
    WHERE h.organization_id = call_organization_id
      AND h.id = call_id;
    RETURN hold;
END
$$;
