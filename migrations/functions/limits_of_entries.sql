-- Find the holds that entries settle and the limits that those count on, and lock nothing.
CREATE OR REPLACE FUNCTION public.limits_of_entries(
    entries jsonb, only_expired boolean, OUT settled public.settled_holds
)
LANGUAGE plpgsql AS $$
BEGIN
    settled.organization_ids := public.uuids_of(entries, '$[*].organization_id');
    settled.ids := public.uuids_of(entries, '$[*].id');
    SELECT array_agg(DISTINCT h.id), array_agg(DISTINCT c.limit_id)
    INTO settled.seen_ids, settled.limit_ids
    FROM public.holds h
    LEFT JOIN LATERAL unnest(h.limit_ids) AS c (limit_id) ON true
    WHERE h.organization_id = ANY (settled.organization_ids)
      AND h.id = ANY (settled.ids);
    IF NOT only_expired AND NOT settled.ids <@ coalesce(settled.seen_ids, '{}') THEN
        -- These calls ended already, or never began. Where the sweeper ended one, its entry may
        -- need a correction.
        SELECT array_agg(DISTINCT x.id), settled.limit_ids || array_agg(DISTINCT c.limit_id)
        INTO settled.interrupted_ids, settled.limit_ids
        FROM public.ledger_entries x
        LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
        WHERE x.organization_id = ANY (settled.organization_ids)
          AND x.id = ANY (settled.ids)
          AND x.outcome = 'interrupted'
          AND x.kind = 'call';
    END IF;
END
$$;
