-- Return a member of each object in an array of JSON, in order. Reading the elements one by one is
-- cheaper than a query or a path.
CREATE OR REPLACE FUNCTION public.member_ids(objects jsonb, member text) RETURNS uuid[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    ids uuid[] := '{}';
BEGIN
    FOR place IN 0 .. jsonb_array_length(objects) - 1 LOOP
        ids := ids || (objects -> place ->> member)::uuid;
    END LOOP;
    RETURN ids;
END
$$;
