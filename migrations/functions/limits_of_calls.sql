-- Find the limits that apply to calls and those that moved calls leave, and lock nothing.
CREATE OR REPLACE FUNCTION public.limits_of_calls(calls jsonb, OUT applying public.applying_limits)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(DISTINCT l.id) FILTER (WHERE l.scope <> 'each_end_user'),
           array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user'),
           array_agg(coalesce(c.end_user, '')) FILTER (WHERE l.scope = 'each_end_user')
    INTO applying.ids, applying.template_ids, applying.template_users
    FROM (
        SELECT DISTINCT c.organization_id, c.api_key_id, decode(c.end_user, 'hex') AS end_user
        FROM jsonb_to_recordset(calls)
            AS c (organization_id uuid, api_key_id uuid, end_user text)
    ) c
    CROSS JOIN LATERAL public.limits_binding(c.organization_id, c.api_key_id, c.end_user) l;
    IF calls @> '[{"is_moved": true}]' THEN
        SELECT array_agg(DISTINCT o.limit_id) INTO applying.left_ids
        FROM jsonb_to_recordset(calls) AS c (organization_id uuid, id uuid, is_moved boolean)
        CROSS JOIN LATERAL (
            SELECT h.limit_ids
            FROM public.holds h
            WHERE h.organization_id = c.organization_id
              AND h.id = c.id
            OFFSET 0  -- by its key, never by a join of all
        ) h
        CROSS JOIN LATERAL unnest(h.limit_ids) AS o (limit_id)
        WHERE c.is_moved;
    END IF;
END
$$;
