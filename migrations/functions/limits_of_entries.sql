-- Find the holds that entries settle and the limits that those count on, and lock nothing.
CREATE OR REPLACE FUNCTION public.limits_of_entries(
    entries jsonb, only_expired boolean, OUT settled public.settled_holds
)
LANGUAGE plpgsql AS $$
DECLARE
    organization_ids CONSTANT uuid[] := public.member_ids(entries, 'organization_id');
    ids CONSTANT uuid[] := public.member_ids(entries, 'id');
    hold record;
    seen_ids uuid[];
    limit_ids uuid[];  -- null where the calls count on none
BEGIN
    FOR hold IN
        SELECT h.id, h.limit_ids
        FROM public.holds h
        WHERE h.organization_id = ANY (organization_ids)
          AND h.id = ANY (ids)
    LOOP
        seen_ids := seen_ids || hold.id;
        IF NOT hold.limit_ids <@ coalesce(limit_ids, '{}') THEN
            limit_ids := limit_ids || hold.limit_ids;
        END IF;
    END LOOP;
    settled.organization_ids := organization_ids;
    settled.ids := ids;
    settled.seen_ids := seen_ids;
    settled.limit_ids := limit_ids;
    IF NOT only_expired AND NOT ids <@ coalesce(seen_ids, '{}') THEN
        -- These calls ended already, or never began. Where the sweeper ended one, its entry may
        -- need a correction.
        SELECT array_agg(DISTINCT x.id), settled.limit_ids || array_agg(DISTINCT c.limit_id)
        INTO settled.interrupted_ids, settled.limit_ids
        FROM public.ledger_entries x
        LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
        WHERE x.organization_id = ANY (organization_ids)
          AND x.id = ANY (ids)
          AND x.outcome = 'interrupted'
          AND x.kind = 'call';
    END IF;
END
$$;
