-- Lock limits, then read them as they are, since nobody else can change them any more.
--
-- Counters of templates for end users are made where they are missing, and locked too: child_ids
-- has one for each pair of the two arrays. limits is in the order of the locks.
CREATE OR REPLACE FUNCTION public.lock_limits(
    limit_ids uuid[], template_ids uuid[], template_users bytea[], most_end_users integer,
    OUT child_ids uuid[], OUT decided_at timestamptz, OUT limits public.limit_state[]
)
LANGUAGE plpgsql AS $$
DECLARE
    locked uuid[];
BEGIN
    LOOP
        IF template_ids IS NOT NULL THEN
            child_ids := public.make_children(template_ids, template_users, most_end_users);
        END IF;
        SELECT array_agg(l.id) INTO locked
        FROM (
            SELECT l.id
            FROM public.limits l
            WHERE l.id = ANY (limit_ids || child_ids)
            -- Everybody locks in this order, so that no two wait for each other.
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) l;
        -- A counter that was idle may have been swept before its lock was taken: it is made again.
        EXIT WHEN child_ids IS NULL OR child_ids <@ locked;
    END LOOP;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();
    limits := '{}';
    IF locked IS NOT NULL THEN
        SELECT array_agg(ROW(
            l.organization_id, l.id, l.template_id, l.scope, l.api_key_id, l.end_user, l.model,
            l.unit, l.period, l.ceiling, l.used, l.held, l.bucket_s, l.window_at, l.resets_at,
            l.ring, l.alert_at, false
        )::public.limit_state) INTO limits
        FROM public.limits_as_of(locked, decided_at) l;
    END IF;
END
$$;
