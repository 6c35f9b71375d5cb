-- Return calls in order, each with its standing.
--
-- standing is 'admitted' where only limits can refuse the call, and 'repeated' where it has a hold
-- or an entry: an admission whose connection broke is repeated, and the server may come to the
-- first statement when the call is long over. A moved call has a hold and is not 'repeated'.
-- caller has all that decides which limits bind a call. first_id and last_id are the least and the
-- greatest id. The arrays are of standings_of_keys().
CREATE OR REPLACE FUNCTION public.standings_of_calls(
    calls jsonb, first_id uuid, last_id uuid, key_ids uuid[], key_organization_ids uuid[],
    key_standings text[]
)
RETURNS TABLE (
    place bigint, organization_id uuid, id uuid, api_key_id uuid, end_user bytea, request_id text,
    endpoint text, model text, is_stream boolean, bound_nanos bigint, bound_tokens bigint,
    least_nanos bigint, least_tokens bigint, requested_model text, price_version integer,
    tags jsonb, is_moved boolean, caller text, standing text
)
LANGUAGE sql STABLE AS $$
    SELECT c.place, c.organization_id, c.id, c.api_key_id, decode(c.end_user, 'hex'), c.request_id,
           c.endpoint, c.model, c.is_stream, c.bound_nanos, c.bound_tokens, c.least_nanos,
           c.least_tokens, c.requested_model, c.price_version, c.tags, c.is_moved,
           concat(c.organization_id, c.api_key_id, c.end_user, ' ', c.model),
           CASE WHEN c.is_moved IS NOT TRUE AND (
                    EXISTS (
                        SELECT
                        FROM public.holds h
                        WHERE h.organization_id = c.organization_id
                          AND h.id = c.id
                        OFFSET 0
                    )
                    -- A range in order, since only the primary key serves it. For an equality every
                    -- index costs the same while the table is empty, and a plan made then may read
                    -- all entries of the organization when there are many. The range of all calls
                    -- keeps other months closed.
                    OR (
                        SELECT true
                        FROM public.ledger_entries x
                        WHERE x.organization_id = c.organization_id
                          AND x.id BETWEEN c.id AND c.id
                          AND x.id BETWEEN first_id AND last_id
                        ORDER BY x.id
                        LIMIT 1
                    )
                ) THEN 'repeated'
                WHEN key_organization_ids[array_position(key_ids, c.api_key_id)]
                     = c.organization_id
                THEN key_standings[array_position(key_ids, c.api_key_id)]
                ELSE 'invalid_api_key' END
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
    ORDER BY c.place
$$;
