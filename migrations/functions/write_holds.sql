-- Write the holds that were taken, and return the releases of those that need not be written.
--
-- The server may come to the first statement of an admission when the call is long over. Such a call
-- holds nothing. And where no limit keeps the two statements apart, the other may have written the
-- hold by now.
CREATE OR REPLACE FUNCTION public.write_holds(
    taken public.hold_row[], process_id uuid, decided_at timestamptz, lease_until timestamptz
)
RETURNS public.entry_row[]
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    first_id uuid;
    last_id uuid;
    count integer;
BEGIN
    FOR n IN 1 .. cardinality(taken) LOOP
        first_id := least(first_id, taken[n].id);
        last_id := greatest(last_id, taken[n].id);
    END LOOP;
    INSERT INTO public.holds (
        organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
        bound_nanos, bound_tokens, limit_ids, limit_windows, process_id, lease_until,
        price_version, tags, created_at, requested_model
    )
    SELECT h.organization_id, h.id, h.api_key_id, h.end_user, h.request_id, h.endpoint, h.model,
           h.is_stream, h.bound_nanos, h.bound_tokens, h.limit_ids, h.limit_windows, process_id,
           lease_until, h.price_version, h.tags, decided_at, h.requested_model
    FROM unnest(taken) h
    -- A range in order, since only the primary key serves it. For an equality every index costs the
    -- same while the table is empty, and a plan made then may read all entries of the organization
    -- when there are many. The range of all calls keeps other months closed.
    WHERE (
        SELECT true
        FROM public.ledger_entries x
        WHERE x.organization_id = h.organization_id
          AND x.id BETWEEN h.id AND h.id
          AND x.id BETWEEN first_id AND last_id
        ORDER BY x.id
        LIMIT 1
    ) IS NULL
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count = cardinality(taken) THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(
        SELECT public.release_of(t.bound_nanos, t.bound_tokens, t.limit_ids, t.limit_windows)
        FROM (
            SELECT t.*, row_number() OVER (PARTITION BY t.organization_id, t.id) AS nth
            FROM unnest(taken) t
        ) t
        WHERE t.nth > 1
           OR NOT EXISTS (
               SELECT
               FROM public.holds h
               WHERE h.organization_id = t.organization_id
                 AND h.id = t.id
                 AND h.xmin = pg_current_xact_id()::xid
               OFFSET 0
           )
    );
END
$$;
