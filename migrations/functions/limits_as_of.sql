-- Read limits as of an instant: windows and rings rolled, raises applied.
--
-- A child has the ceiling and the alert thresholds of its template.
CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamptz)
RETURNS TABLE (
    organization_id uuid, id uuid, scope text, api_key_id uuid, end_user bytea, template_id uuid,
    model text, unit text, period text, ceiling bigint, used bigint, held bigint,
    bucket_s integer, window_at timestamptz, resets_at timestamptz, ring bigint[],
    alert_percents smallint[], alert_at bigint
)
LANGUAGE sql STABLE AS $$
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.template_id, l.model,
           l.unit, l.period, l.ceiling_now, l.used_now, l.held, l.bucket_s, l.window_at,
           CASE WHEN l.bucket_s IS NULL THEN public.limit_resets_at(l.period, l.window_at)
                ELSE l.window_at + 61 * l.bucket_s * interval '1 second' END,
           l.ring, l.alert_percents_now,
           -- The use at which the next alert is due.
           CASE WHEN l.unit = 'usd' THEN (
               SELECT ceil(min(percent) * nullif(l.ceiling_now, 0)::numeric / 100)::bigint
               FROM unnest(l.alert_percents_now) percent
               WHERE percent > CASE WHEN l.window_start = l.window_at THEN l.alerted_percent
                                    ELSE 0 END
           ) END
    FROM (
        SELECT l.*,
               CASE WHEN l.bucket_s IS NOT NULL THEN (SELECT sum(n) FROM unnest(l.ring) n)::bigint
                    WHEN l.window_start = l.window_at THEN l.used
                    ELSE 0 END AS used_now
        FROM (
            SELECT l.*,
                   CASE WHEN l.bucket_s IS NULL THEN NULL
                        WHEN l.bucket_at = l.window_at AND l.buckets IS NOT NULL THEN l.buckets
                        ELSE public.limit_ring(l.buckets, l.bucket_at, l.bucket_s, l.window_at)
                        END AS ring
            FROM (
                SELECT l.*,
                       -- A clock that went back stays with what is newest until it has caught up.
                       CASE WHEN l.bucket_s IS NULL
                            THEN greatest(l.window_start, public.limit_window(l.period, instant))
                            ELSE greatest(l.bucket_at, date_bin(
                                l.bucket_s * interval '1 second', instant, 'epoch'
                            )) END AS window_at,
                       CASE WHEN t.ceiling_now IS NOT NULL THEN t.ceiling_now
                            WHEN l.raised_until > instant THEN l.raised_to
                            ELSE l.ceiling END AS ceiling_now,
                       coalesce(t.alert_percents, l.alert_percents) AS alert_percents_now
                FROM (
                    SELECT l.*, public.limit_bucket_s(l.unit, l.period) AS bucket_s
                    FROM public.limits l
                    WHERE l.id = ANY (wanted)
                ) l
                LEFT JOIN LATERAL (
                    SELECT t.alert_percents,
                           CASE WHEN t.raised_until > instant THEN t.raised_to
                                ELSE t.ceiling END AS ceiling_now
                    FROM public.limits t
                    WHERE t.organization_id = l.organization_id
                      AND t.id = l.template_id
                    OFFSET 0  -- by its key, never by a join of all
                ) t ON true
                OFFSET 0  -- so that each of these is computed once
            ) l
            OFFSET 0
        ) l
        OFFSET 0
    ) l
    ORDER BY l.organization_id, l.id
$$;
