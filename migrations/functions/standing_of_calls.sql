-- Return calls in order, each with its standing and with the limits that apply to it.
--
-- standing is 'admitted' where only limits can refuse the call, and 'repeated' where it has a hold
-- or an entry: an admission whose connection broke is repeated, and the server may come to the
-- first statement when the call is long over. limit_places are places in limits.
CREATE OR REPLACE FUNCTION public.standing_of_calls(
    calls jsonb, applying public.applying_limits, child_ids uuid[], limits public.limit_state[],
    decided_at timestamptz
)
RETURNS TABLE (
    place bigint, organization_id uuid, id uuid, api_key_id uuid, end_user bytea, request_id text,
    endpoint text, model text, is_stream boolean, bound_nanos bigint, bound_tokens bigint,
    least_nanos bigint, least_tokens bigint, requested_model text, price_version integer,
    tags jsonb, is_moved boolean, standing text, limit_places integer[], limit_ids uuid[],
    limit_windows timestamptz[]
)
LANGUAGE sql STABLE AS $$
    WITH states AS MATERIALIZED (
        SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.model, l.window_at,
               l.place::integer
        FROM unnest(limits) WITH ORDINALITY AS l (
            organization_id, id, template_id, scope, api_key_id, end_user, model, unit, period,
            ceiling, used, held, bucket_s, window_at, resets_at, ring, alert_at, is_changed, place
        )
    )
    SELECT c.place, c.organization_id, c.id, c.api_key_id, decode(c.end_user, 'hex'), c.request_id,
           c.endpoint, c.model, c.is_stream, c.bound_nanos, c.bound_tokens, c.least_nanos,
           c.least_tokens, c.requested_model, c.price_version, c.tags, c.is_moved,
           coalesce(
               CASE WHEN c.is_moved THEN CASE WHEN NOT own.is_held THEN 'not_held' END
                    WHEN own.is_held OR own.is_over THEN 'repeated' END,
               (
                   SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                               WHEN k.expires_at <= decided_at THEN 'expired_api_key'
                               WHEN o.status <> 'active' THEN 'organization_inactive'
                               ELSE 'admitted' END
                   FROM public.api_keys k
                   JOIN public.organizations o ON o.id = k.organization_id
                   WHERE k.id = c.api_key_id
                     AND k.organization_id = c.organization_id
               ),
               'invalid_api_key'
           ),
           coalesce(a.places, '{}'), coalesce(a.ids, '{}'), coalesce(a.windows, '{}')
    FROM ROWS FROM (
        jsonb_to_recordset(calls) AS (
            organization_id uuid, id uuid, api_key_id uuid, end_user text, request_id text,
            endpoint text, model text, is_stream boolean, bound_nanos bigint, bound_tokens bigint,
            least_nanos bigint, least_tokens bigint, requested_model text, price_version integer,
            tags jsonb, is_moved boolean
        )
    ) WITH ORDINALITY AS c (
        organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
        bound_nanos, bound_tokens, least_nanos, least_tokens, requested_model, price_version, tags,
        is_moved, place
    )
    CROSS JOIN LATERAL (
        SELECT EXISTS (
                   SELECT
                   FROM public.holds h
                   WHERE h.organization_id = c.organization_id
                     AND h.id = c.id
                   OFFSET 0
               ) AS is_held,
               -- A range in order, since only the primary key serves it. For an equality every
               -- index costs the same while the table is empty, and a plan made then may read all
               -- entries of the organization when there are many.
               (
                   SELECT true
                   FROM public.ledger_entries x
                   WHERE x.organization_id = c.organization_id
                     AND x.id BETWEEN c.id AND c.id
                   ORDER BY x.id
                   LIMIT 1
               ) IS NOT NULL AS is_over,
               CASE WHEN child_ids IS NOT NULL THEN ARRAY(
                   SELECT p.child_id
                   FROM unnest((applying).template_users, child_ids) AS p (end_user, child_id)
                   WHERE p.end_user = coalesce(decode(c.end_user, 'hex'), '')
               ) END AS child_ids
        OFFSET 0  -- so that each of these is computed once
    ) own
    CROSS JOIN LATERAL (
        SELECT array_agg(l.place) AS places, array_agg(l.id) AS ids,
               array_agg(l.window_at) AS windows
        FROM states l
        WHERE l.organization_id = c.organization_id
          AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
          AND (l.model IS NULL OR l.model = c.model)
          -- The end user's own limits, and the templates' counters for them.
          AND CASE WHEN l.scope <> 'end_user' THEN l.id = ANY ((applying).ids)
                   WHEN l.id = ANY ((applying).ids) THEN l.end_user = decode(c.end_user, 'hex')
                   ELSE l.id = ANY (own.child_ids) END
    ) a
    ORDER BY c.place
$$;
