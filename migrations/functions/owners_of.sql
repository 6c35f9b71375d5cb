-- Return the organization of each limit, in order.
CREATE OR REPLACE FUNCTION public.owners_of(limits public.limit_state[]) RETURNS uuid[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    state public.limit_state;
    owner_ids uuid[];
BEGIN
    FOREACH state IN ARRAY limits LOOP
        owner_ids := owner_ids || state.organization_id;
    END LOOP;
    RETURN owner_ids;
END
$$;
