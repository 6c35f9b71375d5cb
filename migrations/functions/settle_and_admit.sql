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
-- Lock order, everywhere: the organization (its audit chain), the ledger as a whole, templates,
-- other limits, each by (organization_id, id), then holds. Admission and settlement lock no
-- organization. VOLATILE, so that each statement sees what was committed before it. Tables are read
-- by keys at hand, without sequential scans and by one generic plan: a plan made when a table was
-- small would read all of it until the next analysis. The lock timeout is short because every other
-- call waits for the batch.
CREATE OR REPLACE FUNCTION public.settle_and_admit(
    entries jsonb, only_expired boolean, calls jsonb, admitting_process_id uuid, lease interval,
    most_end_users integer
)
RETURNS TABLE (
    id uuid, kind text, cost_nanos bigint, bound_nanos bigint,
    number integer, verdict text, limit_id uuid, scope text, model text, unit text, period text,
    used bigint, held bigint, ceiling bigint, needed bigint, resets_at timestamptz,
    retry_after_s integer, granted_nanos bigint, granted_tokens bigint,
    requests_ceiling bigint, requests_left bigint, requests_reset_s integer,
    tokens_ceiling bigint, tokens_left bigint, tokens_reset_s integer
)
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '1500ms' AS $$
#variable_conflict use_column
DECLARE
    ranks CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    decided_at timestamptz;
    -- Of settlements.
    callers uuid[];         -- the organizations
    hold_ids uuid[];
    seen uuid[];
    counted uuid[];         -- the limits that they count on
    interrupted uuid[];
    ended public.holds[];
    ended_ids uuid[];
    earlier public.ledger_entries;
    written public.ledger_entries[] := '{}';
    is_over boolean;
    entry_id uuid;
    amended_id uuid;
    requests integer;
    tokens bigint;
    used_more bigint;
    held_less bigint;
    -- Of admissions.
    wanted uuid[];
    template_ids uuid[];
    template_users bytea[];
    child_ids uuid[];
    left_ids uuid[];        -- the limits that moved calls count on
    call_ids uuid[];
    first_id uuid;
    last_id uuid;
    repeated uuid[];
    moved public.holds;
    taken public.holds[] := '{}';
    taken_ids uuid[];
    taken_windows timestamptz[];
    useds_before bigint[];
    helds_before bigint[];
    rings_before bigint[];
    -- The limits, one place each.
    locked uuid[];
    organization_ids uuid[];
    ids uuid[];
    origins uuid[];         -- the template of a child, else the limit itself
    scopes text[];
    api_key_ids uuid[];
    end_users bytea[];
    models text[];
    units text[];
    periods text[];
    ceilings bigint[];
    useds bigint[];         -- in the window, or in the whole ring
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];  -- the window's start, or the running bucket's
    rings bigint[];
    alerts_at bigint[];
    touched boolean[];
    -- What a turn of a loop is about.
    call record;
    hold public.holds;
    i integer;
    need bigint;
    slot integer;
    running bigint;
    missing bigint;
    rank integer;
    retry_at timestamptz;
    worst_rank integer;
    worst_retry_at timestamptz;
    remaining bigint;
BEGIN
    IF entries IS NOT NULL THEN
        -- Before the limits, as does whoever drops a month.
        LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
        callers := public.uuids_of(entries, '$[*].organization_id');
        hold_ids := public.uuids_of(entries, '$[*].id');
        SELECT array_agg(DISTINCT h.id), array_agg(DISTINCT c.limit_id) INTO seen, counted
        FROM public.holds h
        LEFT JOIN LATERAL unnest(h.limit_ids) AS c (limit_id) ON true
        WHERE h.organization_id = ANY (callers)
          AND h.id = ANY (hold_ids);
        IF NOT only_expired AND NOT hold_ids <@ coalesce(seen, '{}') THEN
            -- Ended already, or never begun: if the sweeper ended one, its entry may want a correction.
            SELECT array_agg(DISTINCT x.id), counted || array_agg(DISTINCT c.limit_id)
            INTO interrupted, counted
            FROM public.ledger_entries x
            LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
            WHERE x.organization_id = ANY (callers)
              AND x.id = ANY (hold_ids)
              AND x.outcome = 'interrupted'
              AND x.kind = 'call';
        END IF;
    END IF;

    IF calls IS NOT NULL THEN
        SELECT array_agg(DISTINCT l.id) FILTER (WHERE l.scope <> 'each_end_user'),
               array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user'),
               array_agg(c.end_user) FILTER (WHERE l.scope = 'each_end_user')
        INTO wanted, template_ids, template_users
        FROM (
            SELECT DISTINCT c.organization_id, c.api_key_id, coalesce(decode(c.end_user, 'hex'), '')
            FROM jsonb_to_recordset(calls)
                AS c (organization_id uuid, api_key_id uuid, end_user text)
        ) c (organization_id, api_key_id, end_user)
        CROSS JOIN LATERAL (
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
        ) l;
        IF calls @? '$[*].end_user ? (@ != null)' THEN
            -- The limits of one end user alone.
            SELECT wanted || array_agg(DISTINCT l.id) INTO wanted
            FROM (
                SELECT DISTINCT c.organization_id, c.api_key_id, decode(c.end_user, 'hex')
                FROM jsonb_to_recordset(calls)
                    AS c (organization_id uuid, api_key_id uuid, end_user text)
            ) c (organization_id, api_key_id, end_user)
            CROSS JOIN LATERAL (
                SELECT l.id
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id IS NULL
                  AND l.end_user = c.end_user
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
                UNION ALL
                SELECT l.id
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id = c.api_key_id
                  AND l.end_user = c.end_user
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
            ) l;
        END IF;
        IF calls @> '[{"is_moved": true}]' THEN
            SELECT array_agg(DISTINCT o.limit_id) INTO left_ids
            FROM jsonb_to_recordset(calls) AS c (organization_id uuid, id uuid, is_moved boolean)
            CROSS JOIN LATERAL (
                SELECT h.limit_ids
                FROM public.holds h
                WHERE h.organization_id = c.organization_id
                  AND h.id = c.id
                OFFSET 0
            ) h
            CROSS JOIN LATERAL unnest(h.limit_ids) AS o (limit_id)
            WHERE c.is_moved;
        END IF;
    END IF;

    LOOP
        IF template_ids IS NOT NULL THEN
            child_ids := public.make_children(template_ids, template_users, most_end_users);
        END IF;
        SELECT array_agg(l.id) INTO locked
        FROM (
            SELECT l.id
            FROM public.limits l
            WHERE l.id = ANY (counted || wanted || child_ids || left_ids)
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) l;
        -- A counter that was idle may have been swept before its lock was taken: it is made again.
        EXIT WHEN child_ids IS NULL OR child_ids <@ locked;
    END LOOP;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();

    IF locked IS NOT NULL THEN
        SELECT array_agg(l.organization_id), array_agg(l.id),
               array_agg(coalesce(l.template_id, l.id)), array_agg(l.scope),
               array_agg(l.api_key_id), array_agg(l.end_user), array_agg(l.model),
               array_agg(l.unit), array_agg(l.period), array_agg(l.ceiling), array_agg(l.used),
               array_agg(l.held), array_agg(l.bucket_s), array_agg(l.window_at),
               array_agg(l.ring), array_agg(l.alert_at), array_agg(false)
        INTO organization_ids, ids, origins, scopes, api_key_ids, end_users, models, units, periods,
             ceilings, useds, helds, bucket_ss, windows, rings, alerts_at, touched
        FROM public.limits_as_of(locked, decided_at) l;
    END IF;

    IF entries IS NOT NULL THEN
        IF seen IS NOT NULL THEN
            -- A hold that was taken after the locks were is left for the next time.
            WITH gone AS (
                DELETE FROM public.holds h
                WHERE h.organization_id = ANY (callers)
                  AND h.id = ANY (seen)
                  AND h.organization_id = callers[array_position(hold_ids, h.id)]
                  AND (NOT only_expired OR h.lease_until < decided_at)
                  AND h.limit_ids <@ coalesce(counted, '{}')
                RETURNING h AS hold
            )
            SELECT array_agg(g.hold), array_agg((g.hold).id) INTO ended, ended_ids FROM gone g;
            IF NOT seen <@ coalesce(ended_ids, '{}') AND EXISTS (
                SELECT
                FROM public.holds h
                WHERE h.organization_id = ANY (callers)
                  AND h.id = ANY (seen)
                  AND NOT h.limit_ids <@ coalesce(counted, '{}')
                  AND (NOT only_expired OR h.lease_until < decided_at)
            ) THEN
                -- It was moved since its limits were read: all of the batch is done again.
                RAISE EXCEPTION 'a hold was moved' USING ERRCODE = 'serialization_failure';
            END IF;
        END IF;
        FOR call IN
            SELECT e.*
            FROM jsonb_to_recordset(entries) AS e (
                organization_id uuid, id uuid, correction_id uuid, model text, outcome text,
                status smallint, input_tokens bigint, cached_input_tokens bigint,
                output_tokens bigint, cost_nanos bigint, cost_source text, upstream_key_id uuid,
                upstream_request_id text, first_byte_ms integer, duration_ms integer
            )
        LOOP
            i := array_position(ended_ids, call.id);
            is_over := false;
            IF i IS NOT NULL THEN
                hold := ended[i];
                ended_ids[i] := NULL;
                kind := 'call';
                entry_id := hold.id;
                amended_id := NULL;
                IF only_expired THEN
                    -- A late repetition of an admission can just miss that the call is over.
                    is_over := EXISTS (
                        SELECT
                        FROM public.ledger_entries x
                        WHERE x.organization_id = hold.organization_id AND x.id = hold.id
                    );
                END IF;
                IF is_over THEN
                    call.cost_nanos := 0;
                ELSIF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
                    call.cost_nanos := hold.bound_nanos;
                    call.cost_source := 'bound';
                ELSIF call.cost_source = 'estimated' THEN
                    call.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
                END IF;
                requests := CASE WHEN is_over THEN 0 ELSE 1 END;
                tokens := CASE
                    WHEN is_over OR call.cost_source = 'not_charged' THEN 0
                    ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0)
                END;
            ELSE
                -- What is no better known than before needs no correction.
                CONTINUE WHEN only_expired OR call.cost_nanos IS NULL;
                SELECT x.* INTO earlier
                FROM public.ledger_entries x
                WHERE x.organization_id = call.organization_id
                  AND x.id = call.id
                  AND x.outcome = 'interrupted'
                  AND (x.id = ANY (interrupted) OR x.id = ANY (seen))
                  AND NOT EXISTS (
                      SELECT
                      FROM public.ledger_entries y
                      WHERE y.organization_id = x.organization_id
                        AND y.amends_id = x.id
                        AND y.kind = 'correction'
                  );
                CONTINUE WHEN NOT FOUND;
                kind := 'correction';
                entry_id := call.correction_id;
                amended_id := earlier.id;
                hold := NULL;
                hold.organization_id := earlier.organization_id;
                hold.id := earlier.id;
                hold.api_key_id := earlier.api_key_id;
                hold.end_user := earlier.end_user;
                hold.request_id := earlier.request_id;
                hold.endpoint := earlier.endpoint;
                hold.requested_model := earlier.requested_model;
                hold.is_stream := earlier.is_stream;
                hold.bound_nanos := earlier.bound_nanos;
                hold.bound_tokens := earlier.bound_tokens;
                hold.limit_ids := earlier.limit_ids;
                hold.limit_windows := earlier.limit_windows;
                hold.price_version := earlier.price_version;
                hold.upstream_key_id := earlier.upstream_key_id;
                hold.tags := earlier.tags;
                requests := 0;
                tokens := CASE
                    WHEN call.cost_source = 'not_charged' THEN 0
                    ELSE coalesce(call.input_tokens + call.output_tokens, earlier.tokens)
                END - earlier.tokens;
                call.cost_nanos := call.cost_nanos - coalesce(earlier.cost_nanos, 0);
                call.input_tokens := call.input_tokens - coalesce(earlier.input_tokens, 0);
                call.output_tokens := call.output_tokens - coalesce(earlier.output_tokens, 0);
            END IF;

            FOR n IN 1 .. cardinality(hold.limit_ids) LOOP
                i := array_position(ids, hold.limit_ids[n]);
                CONTINUE WHEN i IS NULL;
                touched[i] := true;
                used_more := CASE units[i] WHEN 'usd' THEN call.cost_nanos
                                           WHEN 'tokens' THEN tokens
                                           WHEN 'requests' THEN requests
                                           ELSE 0 END;
                held_less := CASE WHEN kind = 'correction' THEN 0
                                  WHEN units[i] = 'usd' THEN hold.bound_nanos
                                  WHEN units[i] = 'tokens' THEN hold.bound_tokens
                                  ELSE 1 END;
                IF bucket_ss[i] IS NULL THEN
                    useds[i] := useds[i] + used_more;
                    helds[i] := helds[i] - held_less;
                    hold.limit_windows[n] := windows[i];
                ELSIF hold.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second' THEN
                    -- Counted in full when it was admitted; what was not used is given back there.
                    slot := extract(epoch FROM hold.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                    rings[i][slot] := rings[i][slot] + used_more - held_less;
                    useds[i] := useds[i] + used_more - held_less;
                END IF;
            END LOOP;
            CONTINUE WHEN is_over;

            -- As the columns of the table stand.
            written := written || ROW(
                hold.organization_id, entry_id, kind, amended_id, hold.api_key_id, hold.end_user,
                hold.request_id, hold.endpoint, call.model, coalesce(hold.requested_model, hold.model),
                hold.is_stream, call.outcome, call.status, requests, call.input_tokens,
                call.cached_input_tokens, call.output_tokens, call.cost_nanos, call.cost_source,
                hold.bound_nanos, hold.bound_tokens, hold.price_version, hold.limit_ids,
                hold.limit_windows, decided_at, coalesce(call.upstream_key_id, hold.upstream_key_id),
                coalesce(call.upstream_request_id, hold.upstream_request_id), call.first_byte_ms,
                call.duration_ms, hold.tags, NULL, decided_at, tokens
            )::public.ledger_entries;
            id := hold.id;
            cost_nanos := call.cost_nanos;
            bound_nanos := hold.bound_nanos;
            RETURN NEXT;
        END LOOP;
        INSERT INTO public.ledger_entries SELECT e.* FROM unnest(written) e;
        FOR n IN 1 .. coalesce(cardinality(ids), 0) LOOP
            IF useds[n] >= alerts_at[n] AND touched[n] THEN
                id := ids[n];
                kind := 'alert';
                cost_nanos := NULL;
                bound_nanos := NULL;
                RETURN NEXT;
            END IF;
        END LOOP;
        id := NULL;
        kind := NULL;
    END IF;

    IF calls IS NOT NULL THEN
        -- An admission whose connection broke is repeated, and the server may come to the first
        -- statement when the call is long over.
        callers := public.uuids_of(calls, '$[*].organization_id');
        call_ids := public.uuids_of(calls, '$[*].id');
        FOREACH entry_id IN ARRAY call_ids LOOP
            first_id := least(first_id, entry_id);
            last_id := greatest(last_id, entry_id);
        END LOOP;
        SELECT array_agg(known.id) INTO repeated
        FROM (
            SELECT h.id
            FROM public.holds h
            WHERE h.organization_id = ANY (callers)
              AND h.id = ANY (call_ids)
            UNION ALL
            SELECT x.id
            FROM public.ledger_entries x
            WHERE x.organization_id = ANY (callers)
              AND x.id = ANY (call_ids)
              -- No other months are looked at.
              AND x.id BETWEEN first_id AND last_id
        ) known;
        FOR call IN
            SELECT c.*,
                   c.id = ANY (repeated) AS is_repeated,
                   coalesce((
                       SELECT CASE
                           WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                           WHEN k.expires_at <= decided_at THEN 'expired_api_key'
                           WHEN o.status <> 'active' THEN 'organization_inactive'
                           ELSE 'admitted'
                       END
                       FROM public.api_keys k
                       JOIN public.organizations o ON o.id = k.organization_id
                       WHERE k.id = c.api_key_id AND k.organization_id = c.organization_id
                   ), 'invalid_api_key') AS standing,
                   ARRAY(
                       SELECT l.place::integer
                       FROM unnest(ids, organization_ids, api_key_ids, end_users, models, scopes)
                           WITH ORDINALITY AS l (
                               id, organization_id, api_key_id, end_user, model, scope, place
                           )
                       WHERE l.organization_id = c.organization_id
                         AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
                         AND (l.model IS NULL OR l.model IN (c.model, split_part(c.model, ':', 1)))
                         -- The end user's own limits, and the templates' counters for them.
                         AND CASE
                             WHEN l.scope <> 'end_user' THEN l.id = ANY (wanted)
                             WHEN l.id = ANY (wanted) THEN l.end_user = decode(c.end_user, 'hex')
                             ELSE l.id = ANY (own.child_ids)
                         END
                       ORDER BY l.place
                   ) AS places
            FROM ROWS FROM (
                jsonb_to_recordset(calls) AS (
                    organization_id uuid, id uuid, api_key_id uuid, end_user text, request_id text,
                    endpoint text, model text, is_stream boolean, bound_nanos bigint,
                    bound_tokens bigint, least_nanos bigint, least_tokens bigint,
                    requested_model text, price_version integer, tags jsonb, is_moved boolean
                )
            ) WITH ORDINALITY AS c (
                organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
                bound_nanos, bound_tokens, least_nanos, least_tokens, requested_model,
                price_version, tags, is_moved, place
            )
            CROSS JOIN LATERAL (
                SELECT CASE WHEN child_ids IS NOT NULL THEN ARRAY(
                    SELECT p.child_id
                    FROM unnest(template_users, child_ids) AS p (end_user, child_id)
                    WHERE p.end_user = coalesce(decode(c.end_user, 'hex'), '')
                ) END AS child_ids
            ) own
            ORDER BY c.place
        LOOP
            number := call.place;
            IF call.is_moved THEN
                SELECT h.* INTO moved
                FROM public.holds h
                WHERE h.organization_id = call.organization_id AND h.id = call.id;
                call.is_repeated := false;
            END IF;
            verdict := CASE WHEN call.is_moved AND moved.id IS NULL THEN 'not_held'
                            WHEN call.is_repeated THEN 'admitted'
                            ELSE call.standing END;
            limit_id := NULL;
            resets_at := NULL;
            retry_after_s := NULL;
            granted_nanos := call.bound_nanos;
            granted_tokens := call.bound_tokens;
            requests_left := NULL;
            tokens_left := NULL;
            IF call.is_repeated OR verdict <> 'admitted' THEN
                IF call.is_repeated THEN
                    SELECT h.bound_nanos, h.bound_tokens INTO granted_nanos, granted_tokens
                    FROM public.holds h
                    WHERE h.organization_id = call.organization_id AND h.id = call.id;
                END IF;
                RETURN NEXT;
                CONTINUE;
            END IF;

            IF call.is_moved THEN
                useds_before := useds;
                helds_before := helds;
                rings_before := rings;
                FOR n IN 1 .. cardinality(moved.limit_ids) LOOP
                    i := array_position(ids, moved.limit_ids[n]);
                    CONTINUE WHEN i IS NULL;
                    touched[i] := true;
                    need := CASE units[i] WHEN 'usd' THEN moved.bound_nanos
                                          WHEN 'tokens' THEN moved.bound_tokens
                                          ELSE 1 END;
                    IF bucket_ss[i] IS NULL THEN
                        helds[i] := helds[i] - need;
                    ELSIF moved.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second'
                    THEN
                        slot := extract(epoch FROM moved.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                        rings[i][slot] := rings[i][slot] - need;
                        useds[i] := useds[i] - need;
                    END IF;
                END LOOP;
            END IF;

            IF call.least_tokens IS NOT NULL THEN
                FOREACH i IN ARRAY call.places LOOP
                    remaining := ceilings[i] - useds[i] - helds[i];
                    -- A bound that is not known stays unknown, whatever is left.
                    IF units[i] = 'usd' AND call.bound_nanos IS NOT NULL THEN
                        granted_nanos := least(granted_nanos, greatest(remaining, call.least_nanos));
                    ELSIF units[i] = 'tokens' THEN
                        granted_tokens := least(granted_tokens, greatest(remaining, call.least_tokens));
                    END IF;
                END LOOP;
            END IF;

            worst_rank := 0;
            FOREACH i IN ARRAY call.places LOOP
                need := CASE units[i] WHEN 'usd' THEN granted_nanos
                                      WHEN 'tokens' THEN granted_tokens
                                      ELSE 1 END;
                CONTINUE WHEN useds[i] + helds[i] + need <= ceilings[i];
                retry_at := NULL;
                IF need IS NULL THEN
                    rank := 4;
                ELSIF units[i] = 'usd' THEN
                    rank := CASE WHEN useds[i] + need > ceilings[i] THEN 3 ELSE 1 END;
                ELSE
                    rank := 2;
                END IF;
                IF rank > 2 OR need > ceilings[i] THEN
                    retry_at := 'infinity';
                ELSIF bucket_ss[i] IS NOT NULL THEN
                    -- When the bucket has gone by that makes room enough.
                    missing := useds[i] + need - ceilings[i];
                    running := extract(epoch FROM windows[i])::bigint / bucket_ss[i];
                    FOR bucket IN running - 60 .. running LOOP
                        missing := missing - rings[i][bucket % 61 + 1];
                        retry_at := to_timestamp((bucket + 61) * bucket_ss[i]);
                        EXIT WHEN missing <= 0;
                    END LOOP;
                ELSIF useds[i] + need > ceilings[i] THEN
                    retry_at := coalesce(
                        public.limit_resets_at(periods[i], windows[i]), 'infinity'
                    );
                ELSE
                    -- Only what others hold stands in the way.
                    retry_at := decided_at + interval '1 second';
                END IF;
                IF rank > worst_rank OR rank = worst_rank AND retry_at > worst_retry_at THEN
                    worst_rank := rank;
                    worst_retry_at := retry_at;
                    verdict := ranks[rank];
                    limit_id := origins[i];
                    scope := scopes[i];
                    model := models[i];
                    unit := units[i];
                    period := periods[i];
                    used := useds[i];
                    held := helds[i];
                    ceiling := ceilings[i];
                    needed := need;
                    resets_at := CASE WHEN bucket_ss[i] IS NULL
                                      THEN public.limit_resets_at(periods[i], windows[i]) END;
                    retry_after_s := ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
                END IF;
            END LOOP;

            IF verdict = 'admitted' THEN
                taken_ids := '{}';
                taken_windows := '{}';
                FOREACH i IN ARRAY call.places LOOP
                    need := CASE units[i] WHEN 'usd' THEN granted_nanos
                                          WHEN 'tokens' THEN granted_tokens
                                          ELSE 1 END;
                    touched[i] := true;
                    taken_ids := taken_ids || ids[i];
                    taken_windows := taken_windows || windows[i];
                    IF bucket_ss[i] IS NULL THEN
                        helds[i] := helds[i] + need;
                    ELSE
                        slot := extract(epoch FROM windows[i])::bigint / bucket_ss[i] % 61 + 1;
                        rings[i][slot] := rings[i][slot] + need;
                        useds[i] := useds[i] + need;
                    END IF;
                END LOOP;
                IF call.is_moved THEN
                    -- In its place, so that a settlement that waits for the row finds what it became.
                    UPDATE public.holds h
                    SET model = call.model,
                        is_stream = call.is_stream,
                        bound_nanos = granted_nanos,
                        bound_tokens = granted_tokens,
                        limit_ids = taken_ids,
                        limit_windows = taken_windows,
                        lease_until = decided_at + lease,
                        requested_model = call.requested_model,
                        price_version = call.price_version
                    WHERE h.organization_id = call.organization_id
                      AND h.id = call.id;
                ELSE
                    -- As the columns of the table stand.
                    taken := taken || ROW(
                        call.organization_id, call.id, call.api_key_id, decode(call.end_user, 'hex'),
                        call.request_id, call.endpoint, call.model, call.is_stream, granted_nanos,
                        granted_tokens, taken_ids, taken_windows, admitting_process_id,
                        decided_at + lease, call.price_version, NULL, NULL, call.tags, decided_at,
                        call.requested_model
                    )::public.holds;
                END IF;
            ELSIF call.is_moved THEN
                useds := useds_before;
                helds := helds_before;
                rings := rings_before;
            END IF;

            -- The tightest rates of the caller, as they stand after this call.
            FOREACH i IN ARRAY call.places LOOP
                CONTINUE WHEN units[i] NOT IN ('requests', 'tokens');
                remaining := greatest(0, ceilings[i] - useds[i] - helds[i]);
                retry_at := CASE WHEN bucket_ss[i] IS NULL
                                 THEN public.limit_resets_at(periods[i], windows[i])
                                 ELSE windows[i] + 61 * bucket_ss[i] * interval '1 second' END;
                IF units[i] = 'requests' AND remaining < coalesce(requests_left, remaining + 1) THEN
                    requests_ceiling := ceilings[i];
                    requests_left := remaining;
                    requests_reset_s := ceil(extract(epoch FROM retry_at - decided_at));
                ELSIF units[i] = 'tokens' AND remaining < coalesce(tokens_left, remaining + 1) THEN
                    tokens_ceiling := ceilings[i];
                    tokens_left := remaining;
                    tokens_reset_s := ceil(extract(epoch FROM retry_at - decided_at));
                END IF;
            END LOOP;
            RETURN NEXT;
        END LOOP;
        INSERT INTO public.holds SELECT h.* FROM unnest(taken) h;
    END IF;

    IF true = ANY (touched) THEN
        PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
    END IF;
END
$$;
