-- Make corrections of calls that the sweeper settled before their own entries came.
--
-- An entry whose cost is unknown corrects nothing, and a call is corrected once. late_ids are the
-- calls that the sweeper settled.
CREATE OR REPLACE FUNCTION public.corrections_of_v2(entries jsonb, late_ids uuid[])
RETURNS public.entry_row[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT ROW(
            x.organization_id, e.correction_id, 'correction', x.id, x.api_key_id, x.end_user,
            x.request_id, x.endpoint, e.model, x.requested_model, x.is_stream, e.outcome, e.status,
            0,
            e.input_tokens - coalesce(x.input_tokens, 0), e.cached_input_tokens,
            e.output_tokens - coalesce(x.output_tokens, 0),
            e.cost_nanos - coalesce(x.cost_nanos, 0), e.cost_source, x.bound_nanos, x.bound_tokens,
            x.price_version, x.limit_ids, x.limit_windows,
            coalesce(e.upstream_key_id, x.upstream_key_id), e.upstream_request_id, e.first_byte_ms,
            e.duration_ms, x.tags,
            CASE WHEN e.cost_source = 'not_charged' THEN 0
                 ELSE coalesce(e.input_tokens + e.output_tokens, x.tokens) END - x.tokens
        )::public.entry_row
        FROM (
            SELECT DISTINCT ON (e.organization_id, e.id) e.*
            FROM jsonb_to_recordset(entries) AS e (
                organization_id uuid, id uuid, correction_id uuid, model text, outcome text,
                status smallint, input_tokens bigint, cached_input_tokens bigint,
                output_tokens bigint, cost_nanos bigint, cost_source text, upstream_key_id uuid,
                upstream_request_id text, first_byte_ms integer, duration_ms integer
            )
            WHERE e.cost_nanos IS NOT NULL
            ORDER BY e.organization_id, e.id
        ) e
        CROSS JOIN LATERAL (
            SELECT x.*
            FROM public.ledger_entries x
            WHERE x.organization_id = e.organization_id
              AND x.id = e.id
              AND x.outcome = 'interrupted'
              AND x.id = ANY (late_ids)
              AND NOT EXISTS (
                  SELECT
                  FROM public.ledger_entries y
                  WHERE y.organization_id = x.organization_id
                    AND y.amends_id = x.id
                    AND y.kind = 'correction'
                  OFFSET 0
              )
            OFFSET 0  -- by its key, never by a join of all
        ) x
    );
END
$$;
