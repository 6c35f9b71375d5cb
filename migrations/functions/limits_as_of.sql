-- Read limits as of an instant.
--
-- A child has the alert thresholds of its template.
CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamptz)
RETURNS TABLE (
    organization_id uuid, id uuid, scope text, api_key_id uuid, end_user bytea, template_id uuid,
    model text, unit text, period text, ceiling bigint, used bigint, held bigint,
    bucket_s integer, window_at timestamptz, resets_at timestamptz, ring bigint[],
    alert_percents smallint[], alert_at bigint
)
LANGUAGE sql STABLE AS $$
    SELECT s.organization_id, s.id, s.scope, s.api_key_id, s.end_user, s.template_id, s.model,
           s.unit, s.period, s.ceiling, s.used, s.held, s.bucket_s, s.window_at, s.resets_at,
           s.ring,
           coalesce(
               (
                   SELECT t.alert_percents
                   FROM public.limits t
                   WHERE t.organization_id = l.organization_id
                     AND t.id = l.template_id
               ),
               l.alert_percents
           ),
           s.alert_at
    FROM public.limits l
    CROSS JOIN LATERAL public.limit_as_of(l, instant) s
    WHERE l.id = ANY (wanted)
    ORDER BY l.organization_id, l.id
$$;
