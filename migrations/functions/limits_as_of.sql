-- Read limits as of an instant, for those who only look at them.
CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamptz)
RETURNS TABLE (
    organization_id uuid, id uuid, scope text, api_key_id uuid, end_user bytea, template_id uuid,
    model text, unit text, period text, ceiling bigint, used bigint, held bigint,
    bucket_s integer, window_at timestamptz, resets_at timestamptz, ring bigint[],
    alert_percents smallint[], alert_at bigint
)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.template_id, l.model,
           l.unit, l.period, s.ceiling, r.used[1], r.held[1], s.bucket_s, s.window_at,
           public.limit_ends_at(l.period, s.bucket_s, s.window_at), s.ring, s.alert_percents,
           public.alert_at(l.unit, s.ceiling, s.alert_percents, s.alerted_percent)
    FROM public.limits l
    CROSS JOIN LATERAL public.limits_at(
        ARRAY[
            ROW(
                l.organization_id, l.id, l.template_id, l.scope, l.model, l.unit, l.period,
                l.ceiling, l.raised_to, l.raised_until, l.used, l.held, l.window_start, l.buckets,
                l.bucket_at, l.alert_percents, l.alerted_percent
            )::public.limit_row
        ],
        instant
    ) r
    CROSS JOIN LATERAL unnest(r.limits) s
    WHERE l.id = ANY (wanted)
    ORDER BY l.organization_id, l.id;
END
$$;
