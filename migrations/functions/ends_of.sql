-- Return the least and the greatest of ids.
CREATE OR REPLACE FUNCTION public.ends_of(ids uuid[], OUT first_id uuid, OUT last_id uuid)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    id uuid;
BEGIN
    FOREACH id IN ARRAY ids LOOP
        first_id := least(first_id, id);
        last_id := greatest(last_id, id);
    END LOOP;
END
$$;
