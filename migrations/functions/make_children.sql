-- Return the counter of each template for each end user, and make those that are missing.
--
-- A template that has most_children counters counts all further end users on a shared one.
CREATE OR REPLACE FUNCTION public.make_children(
    template_ids uuid[], end_users bytea[], most_children integer
) RETURNS uuid[]
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    child_ids uuid[];
    pair record;
BEGIN
    SELECT array_agg(public.limit_child_id(p.template_id, p.end_user) ORDER BY p.place)
    INTO child_ids
    FROM unnest(template_ids, end_users) WITH ORDINALITY AS p (template_id, end_user, place);
    IF child_ids <@ ARRAY(SELECT l.id FROM public.limits l WHERE l.id = ANY (child_ids)) THEN
        RETURN child_ids;
    END IF;
    PERFORM
    FROM public.limits l
    WHERE l.id = ANY (template_ids)
    ORDER BY l.organization_id, l.id
    FOR NO KEY UPDATE;
    FOR pair IN
        SELECT p.place, p.template_id, p.end_user, child_ids[p.place] AS id
        FROM unnest(template_ids, end_users) WITH ORDINALITY AS p (template_id, end_user, place)
        ORDER BY p.place
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM public.limits l WHERE l.id = pair.id);
        IF pair.end_user <> '' THEN
            UPDATE public.limits t
            SET children = t.children + 1
            WHERE t.id = pair.template_id
              AND t.children < most_children;
            IF NOT FOUND THEN
                pair.end_user := '\x00';
                pair.id := public.limit_child_id(pair.template_id, pair.end_user);
                child_ids[pair.place] := pair.id;
            END IF;
        END IF;
        INSERT INTO public.limits (
            organization_id, id, scope, api_key_id, end_user, template_id, model, unit, period,
            ceiling
        )
        SELECT t.organization_id, pair.id, 'end_user', t.api_key_id, pair.end_user, t.id, t.model,
               t.unit, t.period, t.ceiling
        FROM public.limits t
        WHERE t.id = pair.template_id
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN child_ids;
END
$$;
