-- Return calls in order, each with its standing and with the limits that may bind it.
--
-- standing is 'admitted' where only limits can refuse the call. key_digest is the digest of the
-- secret that the caller showed, in base64: that of the key, or its previous one while that works.
-- A call without one, as of the release before, may have shown either.
-- There is a branch for each key of the index of limits, since an OR would read the limits of all
-- API keys. Those of end users are added by with_end_users().
CREATE OR REPLACE FUNCTION public.standings_of_calls_v3(calls jsonb, instant timestamptz)
RETURNS public.asking_call[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT ROW(
            c.organization_id, c.id, c.api_key_id, decode(c.end_user, 'hex'), c.request_id,
            c.endpoint, c.model, c.is_stream, c.bound_nanos, c.bound_tokens, c.least_nanos,
            c.least_tokens, c.requested_model, c.price_version, c.tags, c.is_moved,
            concat(c.organization_id, c.api_key_id, c.end_user, ' ', c.model),
            coalesce(
                (
                    SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                                WHEN k.expires_at <= instant THEN 'expired_api_key'
                                WHEN k.digest <> decode(c.key_digest, 'base64')
                                    AND (
                                        k.previous_digest = decode(c.key_digest, 'base64')
                                        AND k.previous_until > instant
                                    ) IS NOT TRUE THEN 'expired_api_key'
                                WHEN (
                                    SELECT o.status
                                    FROM public.organizations o
                                    WHERE o.id = k.organization_id
                                ) <> 'active' THEN 'organization_inactive'
                                ELSE 'admitted' END
                    FROM public.api_keys k
                    WHERE k.id = c.api_key_id
                      AND k.organization_id = c.organization_id
                ),
                'invalid_api_key'
            ),
            l.limit_ids, l.template_ids
        )::public.asking_call
        FROM ROWS FROM (
            jsonb_to_recordset(calls) AS (
                organization_id uuid, id uuid, api_key_id uuid, end_user text, request_id text,
                endpoint text, model text, is_stream boolean, bound_nanos bigint,
                bound_tokens bigint, least_nanos bigint, least_tokens bigint, requested_model text,
                price_version integer, tags jsonb, is_moved boolean,
                key_digest text
            )
        ) WITH ORDINALITY AS c (
            organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
            bound_nanos, bound_tokens, least_nanos, least_tokens, requested_model, price_version,
            tags, is_moved, key_digest, place
        )
        CROSS JOIN LATERAL (
            SELECT array_agg(l.id) FILTER (WHERE l.scope <> 'each_end_user') AS limit_ids,
                   array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user') AS template_ids
            FROM (
                SELECT l.id, l.scope
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id IS NULL
                  AND l.end_user IS NULL
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
                UNION ALL
                SELECT l.id, l.scope
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id = c.api_key_id
                  AND l.end_user IS NULL
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
            ) l
        ) l
        ORDER BY c.place
    );
END
$$;
