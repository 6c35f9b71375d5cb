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
-- that the caller used), price_version, tags, is_moved, key_digest (base64 of the digest of the
-- secret that the caller showed). They are admitted in the order of the array, each with all of its
-- limits or none. A call that is_moved has a hold already: the new hold replaces it and may use its
-- room. If it is refused the old hold stays; if there is none the verdict is 'not_held'.
--
-- Returns first one row for each entry that was written, with its kind and without a number. A hold
-- that was settled before, or never existed, has no row. Then one row of kind 'alert' for each
-- limit whose use has reached the next of its alert_percents. Then one row for each call, with its
-- number (from 1): the verdict 'admitted' with the bounds that were granted, or the reason of the
-- refusal. A refusal by a limit has the numbers that prove it, used + held + needed > ceiling, and
-- retry_after_s when waiting helps.
--
-- Lock order, everywhere: the organization (its audit chain), the ledger as a whole, its
-- partitions, holds, templates, other limits, each by (organization_id, id). Admission and
-- settlement lock no organization. VOLATILE, so that each statement sees what was committed before
-- it. Tables are read by keys at hand, without sequential scans and by one generic plan: a plan
-- made when a table was small would read all of it until the next analysis. For the few rows of a
-- batch a bitmap costs more than it saves. The steps run with these settings and plan their
-- statements under them. The lock timeout is short because every other call waits for the batch.
CREATE OR REPLACE FUNCTION public.settle_and_admit(
    entries jsonb, only_expired boolean, calls jsonb, process_id uuid, lease interval,
    most_end_users integer
)
RETURNS SETOF public.batch_result
LANGUAGE plpgsql
SET enable_bitmapscan = off
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1500ms' AS $$
DECLARE
    asking public.asking_call[];
    applying public.applying_limits;
    ending record;
    written public.entry_row[];
    limit_ids uuid[];
    locked record;
    limits public.locked_limit[];
    used bigint[];
    held bigint[];
    counted record;
    admitted record;
    ended public.entry_row[];  -- of calls that take no hold after all
    result public.batch_result;
BEGIN
    -- Before the limits, as does whoever drops a month. An admission reads the ledger when it has
    -- the limits, so without this it and the drop would wait for each other.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
    IF calls IS NOT NULL THEN
        asking := public.standings_of_calls_v3(calls, clock_timestamp());
        IF calls @? '$[*].end_user ? (@ != null)' THEN
            asking := public.with_end_users(asking);
        END IF;
        applying := public.limits_of_calls_v2(asking);
        limit_ids := applying.ids;
        IF calls @> '[{"is_moved": true}]' THEN
            limit_ids := limit_ids || public.lock_holds(entries, asking);
        END IF;
    END IF;
    IF entries IS NOT NULL THEN
        ending := public.end_calls_v2(entries, only_expired);
        limit_ids := limit_ids || ending.limit_ids;
    END IF;
    locked := public.lock_limits_v2(
        limit_ids, applying.template_ids, applying.template_users, most_end_users
    );
    limits := locked.limits;
    used := locked.used;
    held := locked.held;

    -- Settlements come first: what they free is room for the admissions.
    IF entries IS NOT NULL THEN
        IF ending.late_ids IS NOT NULL THEN
            ending.written :=
                ending.written || public.corrections_of_v2(entries, ending.late_ids);
        END IF;
        IF cardinality(limits) > 0 THEN
            counted := public.count_entries_v2(
                locked.ids, limits, used, held, ending.written || ending.released
            );
            ending.written := counted.entries[1 : cardinality(ending.written)];
            limits := counted.limits;
            used := counted.used;
            held := counted.held;
        END IF;
        written := ending.written;
        PERFORM public.write_entries(written, locked.decided_at);
        FOR n IN 1 .. cardinality(written) LOOP
            result.id := coalesce(written[n].amends_id, written[n].id);
            result.kind := written[n].kind;
            result.cost_nanos := written[n].cost_nanos;
            result.bound_nanos := written[n].bound_nanos;
            RETURN NEXT result;
        END LOOP;
        result := NULL;
        result.kind := 'alert';
        FOR place IN 1 .. cardinality(locked.ids) LOOP
            CONTINUE WHEN used[place] = locked.used[place];
            IF used[place] >= public.alert_at(
                limits[place].unit, limits[place].ceiling, limits[place].alert_percents,
                limits[place].alerted_percent
            ) THEN
                result.id := limits[place].id;
                RETURN NEXT result;
            END IF;
        END LOOP;
    END IF;
    IF calls IS NOT NULL THEN
        admitted := public.take_calls_v2(
            asking, applying, locked, lease, limits, used, held
        );
        limits := admitted.limits;
        used := admitted.used;
        held := admitted.held;
        ended := public.write_holds(
            admitted.taken, process_id, locked.decided_at, locked.decided_at + lease
        );
        IF cardinality(ended) > 0 AND cardinality(limits) > 0 THEN
            counted := public.count_entries_v2(
                locked.ids, limits, used, held, ended
            );
            limits := counted.limits;
            used := counted.used;
            held := counted.held;
        END IF;
        FOREACH result IN ARRAY admitted.results LOOP
            RETURN NEXT result;
        END LOOP;
    END IF;
    IF cardinality(limits) > 0 THEN
        PERFORM public.write_limits_v2(locked, limits, used, held);
    END IF;
END
$$;
