-- Add what entries count to the roll-ups (sign 1), or take it off again (sign -1).
--
-- The entries are those that were counted from counted_from to before counted_to and, unless these
-- are null, have ids from first_id to before end_id. Whoever calls this has locked the row of
-- derived.usage_cursor, so nobody else changes the roll-ups. Returns each key with its last call.
--
-- It goes by organization, since the ledger's indexes begin with it.
CREATE OR REPLACE FUNCTION public.count_usage(
    sign integer, counted_from timestamptz, counted_to timestamptz, first_id uuid, end_id uuid
)
RETURNS TABLE (api_key_id uuid, last_used_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH batch AS MATERIALIZED (
        SELECT date_trunc('hour', e.counted_at, 'UTC') AS hour, e.organization_id, e.api_key_id,
               e.model, e.endpoint, e.outcome,
               max(e.counted_at) FILTER (WHERE e.calls > 0) AS last_used_at,
               sum(e.entries) AS entries, sum(e.calls) AS calls, sum(e.failures) AS failures,
               sum(e.input_tokens) AS input_tokens,
               sum(e.cached_input_tokens) AS cached_input_tokens,
               sum(e.output_tokens) AS output_tokens, sum(e.cost_nanos) AS cost_nanos,
               sum(e.unknown_costs) AS unknown_costs, sum(e.first_bytes) AS first_bytes,
               sum(e.durations) AS durations
        FROM public.organizations o
        CROSS JOIN LATERAL (
            SELECT x.*
            FROM derived.entries x
            WHERE x.organization_id = o.id
              AND x.counted_at >= count_usage.counted_from
              AND x.counted_at < count_usage.counted_to
              AND (count_usage.first_id IS NULL
                   OR x.id >= count_usage.first_id AND x.id < count_usage.end_id)
            OFFSET 0
        ) e
        GROUP BY 1, 2, 3, 4, 5, 6
    ), counted AS (
        INSERT INTO derived.usage AS kept (
            cut, start_at, organization_id, api_key_id, model, endpoint, outcome, entries, calls,
            failures, input_tokens, cached_input_tokens, output_tokens, cost_nanos, unknown_costs,
            first_bytes, durations
        )
        SELECT c.cut, date_trunc(c.unit, b.hour, 'UTC'),
               CASE WHEN c.has_key THEN b.organization_id END,
               CASE WHEN c.has_key THEN b.api_key_id END,
               CASE WHEN c.has_model THEN b.model END,
               CASE WHEN c.has_model THEN b.endpoint END,
               CASE WHEN c.has_model THEN b.outcome END,
               sign * sum(b.entries), sign * sum(b.calls), sign * sum(b.failures),
               sign * sum(b.input_tokens), sign * sum(b.cached_input_tokens),
               sign * sum(b.output_tokens), sign * sum(b.cost_nanos), sign * sum(b.unknown_costs),
               sign * sum(b.first_bytes), sign * sum(b.durations)
        FROM batch b
        CROSS JOIN (
            VALUES ('hour', 'hour', true, true), ('day', 'day', true, true),
                   ('key_hour', 'hour', true, false), ('key_day', 'day', true, false),
                   ('model_hour', 'hour', false, true), ('model_day', 'day', false, true)
        ) AS c (cut, unit, has_key, has_model)
        GROUP BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT (cut, organization_id, start_at, api_key_id, model, endpoint, outcome)
        DO UPDATE SET
            entries = kept.entries + excluded.entries,
            calls = kept.calls + excluded.calls,
            failures = kept.failures + excluded.failures,
            input_tokens = kept.input_tokens + excluded.input_tokens,
            cached_input_tokens = kept.cached_input_tokens + excluded.cached_input_tokens,
            output_tokens = kept.output_tokens + excluded.output_tokens,
            cost_nanos = kept.cost_nanos + excluded.cost_nanos,
            unknown_costs = kept.unknown_costs + excluded.unknown_costs,
            first_bytes = kept.first_bytes + excluded.first_bytes,
            durations = kept.durations + excluded.durations
    )
    SELECT b.api_key_id, max(b.last_used_at)
    FROM batch b
    WHERE b.last_used_at IS NOT NULL
    GROUP BY b.api_key_id;
END
$$;
