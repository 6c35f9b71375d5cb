-- End calls: delete their holds and make their ledger entries, which are not counted yet.
--
-- A cost that is not known is booked at its bound, and no estimate is higher than that. released are
-- the entries of calls that have one already: they are counted, and never written. limit_ids are the
-- limits that the calls count on, or null; late_ids the calls that have no hold any more.
CREATE OR REPLACE FUNCTION public.end_calls_v2(
    entries jsonb, only_expired boolean,
    OUT written public.entry_row[], OUT released public.entry_row[], OUT limit_ids uuid[],
    OUT late_ids uuid[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
    organization_ids uuid[] := '{}';
    ids uuid[] := '{}';
    ended_ids uuid[] := '{}';
    hold record;
    call public.ended_call;
BEGIN
    FOR place IN 0 .. jsonb_array_length(entries) - 1 LOOP
        organization_ids := organization_ids || (entries -> place ->> 'organization_id')::uuid;
        ids := ids || (entries -> place ->> 'id')::uuid;
    END LOOP;
    written := '{}';
    released := '{}';
    FOR hold IN
        DELETE FROM public.holds h
        WHERE h.organization_id = ANY (organization_ids)
          AND h.id = ANY (ids)
          AND h.organization_id = organization_ids[array_position(ids, h.id)]
          AND (NOT only_expired OR h.lease_until < now)
        RETURNING h.organization_id, h.id, h.api_key_id, h.end_user, h.request_id, h.endpoint,
                  h.model, h.is_stream, h.bound_nanos, h.bound_tokens, h.limit_ids,
                  h.limit_windows, h.price_version, h.upstream_key_id, h.upstream_request_id,
                  h.tags, h.requested_model
    LOOP
        ended_ids := ended_ids || hold.id;
        IF hold.limit_ids <> '{}' THEN
            limit_ids := limit_ids || hold.limit_ids;
        END IF;
        IF only_expired AND public.has_entry(hold.organization_id, hold.id) THEN
            released := released || public.release_of(
                hold.bound_nanos, hold.bound_tokens, hold.limit_ids, hold.limit_windows
            );
            CONTINUE;
        END IF;
        call := jsonb_populate_record(
            NULL::public.ended_call, entries -> array_position(ids, hold.id) - 1
        );
        IF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
            call.cost_nanos := hold.bound_nanos;
            call.cost_source := 'bound';
        ELSIF call.cost_source = 'estimated' THEN
            call.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
        END IF;
        written := written || ROW(
            hold.organization_id, hold.id, 'call', NULL, hold.api_key_id, hold.end_user,
            hold.request_id, hold.endpoint, call.model, coalesce(hold.requested_model, hold.model),
            hold.is_stream, call.outcome, call.status, 1, call.input_tokens,
            call.cached_input_tokens, call.output_tokens, call.cost_nanos, call.cost_source,
            hold.bound_nanos, hold.bound_tokens, hold.price_version, hold.limit_ids,
            hold.limit_windows, coalesce(call.upstream_key_id, hold.upstream_key_id),
            coalesce(call.upstream_request_id, hold.upstream_request_id), call.first_byte_ms,
            call.duration_ms, hold.tags,
            CASE WHEN call.cost_source = 'not_charged' THEN 0
                 ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0) END
        )::public.entry_row;
    END LOOP;
    IF NOT only_expired AND cardinality(ended_ids) < cardinality(ids) THEN
        -- The other calls ended already, or never began. Where the sweeper ended one, its entry may
        -- need a correction.
        SELECT array_agg(DISTINCT x.id), limit_ids || array_agg(DISTINCT c.limit_id)
        INTO late_ids, limit_ids
        FROM public.ledger_entries x
        LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
        WHERE x.organization_id = ANY (organization_ids)
          AND x.id = ANY (ids)
          AND x.outcome = 'interrupted'
          AND x.kind = 'call';
    END IF;
END
$$;
