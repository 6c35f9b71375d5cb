-- Give back money of a call with one ledger entry of kind 'credit'.
--
-- The call's limits on money count the credit in the windows that run now, so their use may fall
-- below zero: money that is given back this month can be spent this month.
--
-- verdict is 'credited'; 'repeated' when the same credit exists already; 'id_taken' when something
-- else has credit_id; 'no_call' or 'not_a_call'; 'too_much' when the credit exceeds left_nanos, the
-- cost of the call after its corrections and earlier credits.
CREATE OR REPLACE FUNCTION public.credit(
    call_organization_id uuid, call_id uuid, credit_id uuid, credit_nanos bigint, credit_note text
) RETURNS TABLE (verdict text, left_nanos bigint)
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    call public.ledger_entries;
    same public.ledger_entries;
    locked record;
    credited public.entry_row;
    counted record;
BEGIN
    -- One credit of an organization at a time; before the ledger is touched, as in every change.
    PERFORM FROM public.organizations o WHERE o.id = call_organization_id FOR NO KEY UPDATE;
    -- Before the clock is read: roll-ups wait for whoever has this lock.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;

    SELECT x.* INTO call
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = call_id;
    IF call.id IS NULL OR call.kind <> 'call' THEN
        verdict := CASE WHEN call.id IS NULL THEN 'no_call' ELSE 'not_a_call' END;
        RETURN NEXT;
        RETURN;
    END IF;

    locked := public.lock_limits_v2(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = call_organization_id
              AND l.id = ANY (call.limit_ids)
              AND l.unit = 'usd'
        ),
        NULL, NULL, NULL
    );

    SELECT x.* INTO same
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = credit_id;
    SELECT coalesce(call.cost_nanos, 0) + coalesce(sum(x.cost_nanos), 0) INTO left_nanos
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.amends_id = call_id;
    verdict := CASE
        WHEN same.kind = 'credit' AND same.amends_id = call_id
             AND same.cost_nanos = -credit_nanos AND same.note = credit_note THEN 'repeated'
        WHEN same.id IS NOT NULL THEN 'id_taken'
        WHEN credit_nanos > left_nanos THEN 'too_much'
        ELSE 'credited'
    END;
    RETURN NEXT;
    IF verdict <> 'credited' THEN
        RETURN;
    END IF;

    -- A credit counts as a correction does: it holds nothing.
    credited.kind := 'credit';
    credited.cost_nanos := -credit_nanos;
    credited.limit_ids := call.limit_ids;
    credited.limit_windows := call.limit_windows;
    counted := public.count_entries_v2(
        locked.ids, locked.limits, locked.used, locked.held, ARRAY[credited]
    );

    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, cost_nanos, cost_source, price_version, limit_ids,
        limit_windows, counted_at, tags, note
    )
    VALUES (
        call_organization_id, credit_id, 'credit', call_id, call.api_key_id, call.end_user,
        call.request_id, call.endpoint, call.model, call.requested_model, call.is_stream,
        -credit_nanos, 'manual', call.price_version, call.limit_ids,
        counted.entries[1].limit_windows, locked.decided_at, call.tags, credit_note
    );

    PERFORM public.write_limits_v2(locked, counted.limits, counted.used, counted.held);
END
$$;
