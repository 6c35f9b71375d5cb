-- Lock limits, then take them as they are, since nobody else can change them any more.
--
-- Counters of templates for end users are made where they are missing, and locked too: child_ids
-- has one for each pair of the two arrays. limits is in the order of the locks, as are ids, used and
-- held. Where limit_ids and template_ids are null there is nothing to lock.
CREATE OR REPLACE FUNCTION public.lock_limits_v2(
    limit_ids uuid[], template_ids uuid[], template_users bytea[], most_end_users integer,
    OUT decided_at timestamptz, OUT child_ids uuid[], OUT ids uuid[],
    OUT limits public.locked_limit[], OUT used bigint[], OUT held bigint[]
)
LANGUAGE plpgsql AS $$
DECLARE
    locked public.limit_row[];
    rolled record;
BEGIN
    IF template_ids IS NOT NULL THEN
        child_ids := public.make_children(template_ids, template_users, most_end_users);
    END IF;
    IF limit_ids IS NOT NULL OR child_ids IS NOT NULL THEN
        SELECT array_agg(o.id), array_agg(o.found) INTO ids, locked
        FROM (
            SELECT l.id, ROW(
                       l.organization_id, l.id, l.template_id, l.scope, l.model, l.unit, l.period,
                       l.ceiling, l.raised_to, l.raised_until, l.used, l.held, l.window_start,
                       l.buckets, l.bucket_at, l.alert_percents, l.alerted_percent
                   )::public.limit_row AS found
            FROM public.limits l
            WHERE l.id = ANY (limit_ids || child_ids)
            -- Everybody locks in this order, so that no two wait for each other.
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) o;
        IF NOT child_ids <@ coalesce(ids, '{}') THEN
            -- A counter that was idle was swept before its lock was taken. To make it again needs
            -- its template, which is locked before limits: so the whole batch is done again.
            RAISE EXCEPTION 'a counter was swept' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();
    IF ids IS NULL THEN
        ids := '{}';
        limits := '{}';
        used := '{}';
        held := '{}';
    ELSE
        rolled := public.limits_at(locked, decided_at);
        limits := rolled.limits;
        used := rolled.used;
        held := rolled.held;
    END IF;
END
$$;
