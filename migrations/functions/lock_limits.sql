-- Lock limits, then take them as they are, since nobody else can change them any more.
--
-- Counters of templates for end users are made where they are missing, and locked too: child_ids
-- has one for each pair of the two arrays. limits is in the order of the locks. Where limit_ids and
-- template_ids are null there is nothing to lock.
CREATE OR REPLACE FUNCTION public.lock_limits(
    limit_ids uuid[], template_ids uuid[], template_users bytea[], most_end_users integer,
    OUT child_ids uuid[], OUT decided_at timestamptz, OUT limits public.limit_state[]
)
LANGUAGE plpgsql AS $$
DECLARE
    locked public.limits[];
    locked_ids uuid[];
    one public.limits;
BEGIN
    WHILE limit_ids IS NOT NULL OR template_ids IS NOT NULL LOOP
        IF template_ids IS NOT NULL THEN
            child_ids := public.make_children(template_ids, template_users, most_end_users);
        END IF;
        SELECT array_agg(o.l), array_agg((o.l).id)
        INTO locked, locked_ids
        FROM (
            SELECT l
            FROM public.limits l
            WHERE l.id = ANY (limit_ids || child_ids)
            -- Everybody locks in this order, so that no two wait for each other.
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) o;
        -- A counter that was idle may have been swept before its lock was taken: it is made again.
        EXIT WHEN child_ids IS NULL OR child_ids <@ locked_ids;
    END LOOP;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();
    limits := '{}';
    FOREACH one IN ARRAY coalesce(locked, '{}') LOOP
        limits := limits || public.limit_as_of(one, decided_at);
    END LOOP;
END
$$;
