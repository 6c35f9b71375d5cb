-- Settle calls, then admit calls, as one batch under one lock of their limits.
--
-- Both arrays may be null. A batch may be repeated with the same ids: the second time it changes
-- nothing.
--
-- entries is an array of objects: organization_id, id (the hold's), correction_id (the id of the
-- entry that corrects the sweeper's, if the sweeper was faster), and the outcome of the call, named
-- as the columns of ledger_entries. With only_expired, the sweeper's mode, a hold whose lease was
-- renewed stays, and the hold of a call that has its entry goes without another.
--
-- calls is an array of objects: organization_id, id, api_key_id, end_user (hex of its digest),
-- request_id, endpoint, model, is_stream, bound_nanos (null: no price), bound_tokens, least_nanos
-- and least_tokens (the call may be cut down to these; null: it may not), requested_model (the name
-- that the caller used), price_version, tags, is_moved. They are admitted in the order of the
-- array, each with all of its limits or none. A call that is_moved has a hold already: the new hold
-- replaces it and may use its room. If it is refused the old hold stays; if there is none the
-- verdict is 'not_held'.
--
-- Returns first one row for each entry that was written, with its kind and without a number. A hold
-- that was settled before, or never existed, has no row. Then one row of kind 'alert' for each
-- limit whose use has reached the next of its alert_percents. Then one row for each call, with its
-- number (from 1): the verdict 'admitted' with the bounds that were granted, or the reason of the
-- refusal. A refusal by a limit has the numbers that prove it, used + held + needed > ceiling, and
-- retry_after_s when waiting helps.
--
-- Lock order, everywhere: the organization (its audit chain), the ledger as a whole, its
-- partitions, templates, other limits, each by (organization_id, id), then holds. Admission and
-- settlement lock no organization. VOLATILE, so that each statement sees what was committed before
-- it. Tables are read by keys at hand, without sequential scans and by one generic plan: a plan
-- made when a table was small would read all of it until the next analysis. The steps run with
-- these settings and plan their statements under them. The lock timeout is short because every
-- other call waits for the batch.
CREATE OR REPLACE FUNCTION public.settle_and_admit(
    entries jsonb, only_expired boolean, calls jsonb, process_id uuid, lease interval,
    most_end_users integer
)
RETURNS SETOF public.batch_result
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1500ms' AS $$
DECLARE
    settled public.settled_holds;
    applying public.applying_limits;
    locked record;
    limits public.limit_state[];
    ended record;
    admitted record;
    entry public.ledger_entries;
    state public.limit_state;
    result public.batch_result;
BEGIN
    -- Before the limits, as does whoever drops a month. An admission reads the ledger when it has
    -- the limits, so without this it and the drop would wait for each other.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
    IF entries IS NOT NULL THEN
        settled := public.limits_of_entries(entries, only_expired);
    END IF;
    IF calls IS NOT NULL THEN
        applying := public.limits_of_calls(calls);
    END IF;
    locked := public.lock_limits(
        settled.limit_ids || applying.ids || applying.left_ids,
        applying.template_ids, applying.template_users, most_end_users
    );
    limits := locked.limits;

    -- Settlements come first: what they free is room for the admissions.
    IF entries IS NOT NULL THEN
        ended := public.end_calls(entries, only_expired, settled, locked.decided_at, limits);
        limits := ended.limits;
        INSERT INTO public.ledger_entries SELECT e.* FROM unnest(ended.written) e;
        FOREACH entry IN ARRAY ended.written LOOP
            result.id := coalesce(entry.amends_id, entry.id);
            result.kind := entry.kind;
            result.cost_nanos := entry.cost_nanos;
            result.bound_nanos := entry.bound_nanos;
            RETURN NEXT result;
        END LOOP;
        result := NULL;
        result.kind := 'alert';
        FOREACH state IN ARRAY limits LOOP
            IF state.used >= state.alert_at AND state.is_changed THEN
                result.id := state.id;
                RETURN NEXT result;
            END IF;
        END LOOP;
    END IF;
    IF calls IS NOT NULL THEN
        admitted := public.take_calls(
            calls, applying, locked.child_ids, process_id, lease, locked.decided_at, limits
        );
        limits := admitted.limits;
        INSERT INTO public.holds SELECT h.* FROM unnest(admitted.taken) h;
        FOREACH result IN ARRAY admitted.results LOOP
            RETURN NEXT result;
        END LOOP;
    END IF;
    IF cardinality(limits) > 0 THEN
        PERFORM public.write_limits(limits);
    END IF;
END
$$;
