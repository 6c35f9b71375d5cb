-- Delete counters of end users that count nothing, and those of deleted templates.
--
-- Counters that a hold names stay. Deletes at most `most` and returns how many.
CREATE OR REPLACE FUNCTION public.sweep_children(most integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    found uuid[];
    versions text[];
    swept integer;
BEGIN
    WITH held AS MATERIALIZED (
        SELECT DISTINCT unnest(h.limit_ids) AS id FROM public.holds h
    )
    SELECT array_agg(l.id), array_agg(l.version) INTO found, versions
    FROM (
        SELECT l.id, l.xmin::text AS version
        FROM public.limits l
        JOIN public.limits t ON t.organization_id = l.organization_id AND t.id = l.template_id
        WHERE l.template_id IS NOT NULL
          AND l.held = 0
          AND (t.deleted_at IS NOT NULL OR public.is_idle(
              l.unit, l.period, l.used, l.window_start, l.buckets, l.bucket_at, clock_timestamp()
          ))
          AND NOT EXISTS (SELECT FROM held WHERE held.id = l.id)
        LIMIT most
    ) l;
    PERFORM
    FROM public.limits t
    WHERE t.id IN (SELECT l.template_id FROM public.limits l WHERE l.id = ANY (found))
    ORDER BY t.organization_id, t.id
    FOR NO KEY UPDATE;
    WITH unused AS (
        -- One that was written since it was found stays, and so does one that is in use right now.
        SELECT l.organization_id, l.id
        FROM unnest(found, versions) AS f (id, version)
        JOIN public.limits l ON l.id = f.id AND l.xmin::text = f.version
        FOR UPDATE OF l SKIP LOCKED
    ), gone AS (
        DELETE FROM public.limits l
        USING unused u
        WHERE l.organization_id = u.organization_id
          AND l.id = u.id
        RETURNING l.template_id, l.end_user
    ), updated AS (
        UPDATE public.limits t
        SET children = t.children - g.end_users
        FROM (
            SELECT g.template_id,
                   count(*) FILTER (WHERE g.end_user NOT IN ('', '\x00')) AS end_users
            FROM gone g
            GROUP BY g.template_id
        ) g
        WHERE t.id = g.template_id
    )
    SELECT count(*) INTO swept FROM gone;
    RETURN swept;
END
$$;
