-- Lock the holds that a batch moves and those that it ends, and return the limits of the moved ones.
--
-- All in one order, so that no two batches wait for each other.
CREATE OR REPLACE FUNCTION public.lock_holds(
    entries jsonb, calls public.asking_call[], OUT left_ids uuid[]
)
LANGUAGE plpgsql AS $$
DECLARE
    hold record;
BEGIN
    FOR hold IN
        SELECT h.limit_ids, w.is_moved
        FROM (
            SELECT c.organization_id, c.id, true AS is_moved
            FROM unnest(calls) c
            WHERE c.is_moved
            UNION ALL
            SELECT e.organization_id, e.id, false
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            ORDER BY organization_id, id
        ) w
        CROSS JOIN LATERAL (
            SELECT h.limit_ids
            FROM public.holds h
            WHERE h.organization_id = w.organization_id
              AND h.id = w.id
            FOR UPDATE
        ) h
    LOOP
        IF hold.is_moved AND hold.limit_ids <> '{}' THEN
            left_ids := left_ids || hold.limit_ids;
        END IF;
    END LOOP;
END
$$;
