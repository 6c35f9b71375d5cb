-- Write entries to the ledger, once it is sure that they are whole.
CREATE OR REPLACE FUNCTION public.write_entries(
    entries public.entry_row[], counted_at timestamptz
)
RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    sources CONSTANT text[] := '{reported,computed,estimated,not_charged,bound,unknown}';
BEGIN
    FOR n IN 1 .. cardinality(entries) LOOP
        IF entries[n].outcome IS NULL OR entries[n].cost_source <> ALL (sources) THEN
            RAISE EXCEPTION 'an entry has no outcome, or an unknown source of its cost'
                USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, outcome, status, requests, input_tokens, cached_input_tokens,
        output_tokens, cost_nanos, cost_source, bound_nanos, bound_tokens, price_version,
        limit_ids, limit_windows, upstream_key_id, upstream_request_id, first_byte_ms, duration_ms,
        tags, tokens, counted_at, created_at
    )
    SELECT e.organization_id, e.id, e.kind, e.amends_id, e.api_key_id, e.end_user, e.request_id,
           e.endpoint, e.model, e.requested_model, e.is_stream, e.outcome, e.status, e.requests,
           e.input_tokens, e.cached_input_tokens, e.output_tokens, e.cost_nanos, e.cost_source,
           e.bound_nanos, e.bound_tokens, e.price_version, e.limit_ids, e.limit_windows,
           e.upstream_key_id, e.upstream_request_id, e.first_byte_ms, e.duration_ms, e.tags,
           e.tokens, counted_at, counted_at
    FROM unnest(entries) e;
END
$$;
