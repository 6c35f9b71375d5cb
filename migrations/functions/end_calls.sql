-- End calls: delete their holds, make their ledger entries, and count these on the limits.
--
-- A cost that is not known is booked at its bound, and no estimate is higher than that.
CREATE OR REPLACE FUNCTION public.end_calls(
    entries jsonb, only_expired boolean, settled public.settled_holds, decided_at timestamptz,
    INOUT limits public.limit_state[], OUT written public.ledger_entries[]
)
LANGUAGE plpgsql AS $$
DECLARE
    gone record;
    call record;
    hold public.holds;
    released public.ledger_entries[] := '{}';
    counted record;
    place integer;
BEGIN
    written := '{}';
    gone := public.end_holds(settled, only_expired, decided_at);
    FOR call IN
        SELECT e.*
        FROM jsonb_to_recordset(entries) AS e (
            organization_id uuid, id uuid, model text, outcome text, status smallint,
            input_tokens bigint, cached_input_tokens bigint, output_tokens bigint,
            cost_nanos bigint, cost_source text, upstream_key_id uuid, upstream_request_id text,
            first_byte_ms integer, duration_ms integer
        )
    LOOP
        place := array_position(gone.ids, call.id);
        CONTINUE WHEN place IS NULL;
        gone.ids[place] := NULL;
        hold := gone.ended[place];
        IF only_expired AND public.is_over(hold) THEN
            released := released || public.released(hold);
            CONTINUE;
        END IF;
        IF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
            call.cost_nanos := hold.bound_nanos;
            call.cost_source := 'bound';
        ELSIF call.cost_source = 'estimated' THEN
            call.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
        END IF;
        -- In the order of the table's columns.
        written := written || ROW(
            hold.organization_id, hold.id, 'call', NULL, hold.api_key_id, hold.end_user,
            hold.request_id, hold.endpoint, call.model, coalesce(hold.requested_model, hold.model),
            hold.is_stream, call.outcome, call.status, 1, call.input_tokens,
            call.cached_input_tokens, call.output_tokens, call.cost_nanos, call.cost_source,
            hold.bound_nanos, hold.bound_tokens, hold.price_version, hold.limit_ids,
            hold.limit_windows, decided_at, coalesce(call.upstream_key_id, hold.upstream_key_id),
            coalesce(call.upstream_request_id, hold.upstream_request_id), call.first_byte_ms,
            call.duration_ms, hold.tags, NULL, decided_at,
            CASE WHEN call.cost_source = 'not_charged' THEN 0
                 ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0) END
        )::public.ledger_entries;
    END LOOP;
    IF NOT only_expired AND cardinality(written) < cardinality(settled.ids) THEN
        written := written || public.corrections_of(entries, settled, decided_at);
    END IF;
    IF cardinality(limits) > 0 THEN
        counted := public.count_entries(limits, written || released);
        limits := counted.limits;
        written := counted.entries[1 : cardinality(written)];
    END IF;
END
$$;
