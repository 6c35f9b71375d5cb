-- Read limits as of an instant.
CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamptz)
RETURNS SETOF public.limit_state
LANGUAGE sql STABLE AS $$
    SELECT s.*
    FROM public.limits l
    CROSS JOIN LATERAL public.limit_as_of(l, instant) s
    WHERE l.id = ANY (wanted)
    ORDER BY l.organization_id, l.id
$$;
