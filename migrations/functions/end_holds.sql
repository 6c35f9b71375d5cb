-- Delete the holds that entries settle, and return them.
--
-- A hold that was taken after the limits were locked is left for the next batch.
CREATE OR REPLACE FUNCTION public.end_holds(
    settled public.settled_holds, only_expired boolean, decided_at timestamptz,
    OUT ended public.holds[], OUT ids uuid[]
)
LANGUAGE plpgsql AS $$
DECLARE
    locked CONSTANT uuid[] := coalesce(settled.limit_ids, '{}');
BEGIN
    IF settled.seen_ids IS NULL THEN
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM public.holds h
        WHERE h.organization_id = ANY (settled.organization_ids)
          AND h.id = ANY (settled.seen_ids)
          AND h.organization_id = settled.organization_ids[array_position(settled.ids, h.id)]
          AND (NOT only_expired OR h.lease_until < decided_at)
          AND h.limit_ids <@ locked
        RETURNING h AS hold
    )
    SELECT array_agg(g.hold), array_agg((g.hold).id) INTO ended, ids FROM gone g;
    IF NOT settled.seen_ids <@ coalesce(ids, '{}') AND EXISTS (
        SELECT
        FROM public.holds h
        WHERE h.organization_id = ANY (settled.organization_ids)
          AND h.id = ANY (settled.seen_ids)
          AND NOT h.limit_ids <@ locked
          AND (NOT only_expired OR h.lease_until < decided_at)
    ) THEN
        -- It was moved since its limits were read, so the whole batch is done again.
        RAISE EXCEPTION 'a hold was moved' USING ERRCODE = 'serialization_failure';
    END IF;
END
$$;
