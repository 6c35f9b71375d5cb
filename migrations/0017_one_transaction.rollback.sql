DROP FUNCTION public.settle_and_admit(jsonb, boolean, jsonb, uuid, interval, integer);
DROP FUNCTION public.uuids_of(jsonb, jsonpath);

-- As 0011 made them.
-- Limits as they are at an instant: windows and rings rolled, raises applied. A child has the
-- ceiling and the thresholds of its template.
CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamptz)
RETURNS TABLE (
    organization_id uuid, id uuid, scope text, api_key_id uuid, end_user bytea, template_id uuid,
    model text, unit text, period text, ceiling bigint, used bigint, held bigint,
    bucket_s integer, window_at timestamptz, resets_at timestamptz, ring bigint[],
    alert_percents smallint[], alert_at bigint
)
LANGUAGE sql STABLE AS $$
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.template_id, l.model,
           l.unit, l.period, l.ceiling_now, l.used_now, l.held, l.bucket_s, l.window_at,
           CASE WHEN l.bucket_s IS NULL THEN public.limit_resets_at(l.period, l.window_at)
                ELSE l.window_at + 61 * l.bucket_s * interval '1 second' END,
           l.ring, l.alert_percents_now,
           -- The use at which the next alert is due.
           CASE WHEN l.unit = 'usd' THEN (
               SELECT ceil(min(percent) * nullif(l.ceiling_now, 0)::numeric / 100)::bigint
               FROM unnest(l.alert_percents_now) percent
               WHERE percent > CASE WHEN l.window_start = l.window_at THEN l.alerted_percent
                                    ELSE 0 END
           ) END
    FROM (
        SELECT l.*,
               CASE WHEN l.bucket_s IS NOT NULL THEN (SELECT sum(n) FROM unnest(l.ring) n)::bigint
                    WHEN l.window_start = l.window_at THEN l.used
                    ELSE 0 END AS used_now
        FROM (
            SELECT l.*,
                   CASE WHEN l.bucket_s IS NULL THEN array_fill(0::bigint, ARRAY[61])
                        ELSE public.limit_ring(l.buckets, l.bucket_at, l.bucket_s, l.window_at)
                        END AS ring
            FROM (
                SELECT l.*,
                       -- A clock that went back stays with what is newest until it has caught up.
                       CASE WHEN l.bucket_s IS NULL
                            THEN greatest(l.window_start, public.limit_window(l.period, instant))
                            ELSE greatest(l.bucket_at, date_bin(
                                l.bucket_s * interval '1 second', instant, 'epoch'
                            )) END AS window_at,
                       coalesce(
                           (
                               SELECT CASE WHEN t.raised_until > instant THEN t.raised_to
                                           ELSE t.ceiling END
                               FROM public.limits t
                               WHERE t.organization_id = l.organization_id
                                 AND t.id = l.template_id
                           ),
                           CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END
                       ) AS ceiling_now,
                       coalesce(
                           (
                               SELECT t.alert_percents
                               FROM public.limits t
                               WHERE t.organization_id = l.organization_id
                                 AND t.id = l.template_id
                           ),
                           l.alert_percents
                       ) AS alert_percents_now
                FROM (
                    SELECT l.*, public.limit_bucket_s(l.unit, l.period) AS bucket_s
                    FROM public.limits l
                    WHERE l.id = ANY (wanted)
                ) l
                OFFSET 0  -- so that each of these is computed once
            ) l
            OFFSET 0
        ) l
        OFFSET 0
    ) l
    ORDER BY l.organization_id, l.id
$$;

-- Writes back what has changed of locked limits. A window that has rolled begins at nothing.
CREATE OR REPLACE FUNCTION public.write_limits(
    ids uuid[], useds bigint[], helds bigint[], bucket_ss integer[], windows timestamptz[],
    rings bigint[], touched boolean[]
) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    UPDATE public.limits l
    SET held = n.held,
        used = CASE WHEN n.bucket_s IS NULL THEN n.used ELSE l.used END,
        carried = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at THEN l.carried
                       ELSE 0 END,
        alerted_percent = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at
                               THEN l.alerted_percent
                               ELSE 0 END,
        window_start = CASE WHEN n.bucket_s IS NULL THEN n.window_at ELSE l.window_start END,
        buckets = CASE WHEN n.bucket_s IS NULL THEN l.buckets ELSE r.ring END,
        bucket_at = CASE WHEN n.bucket_s IS NULL THEN l.bucket_at ELSE n.window_at END
    FROM unnest(ids, useds, helds, bucket_ss, windows, touched)
        WITH ORDINALITY AS n (id, used, held, bucket_s, window_at, is_touched, place)
    -- All rings at once: a slice for each row would copy them all each time.
    JOIN (
        SELECT (u.at - 1) / 61 + 1 AS place, array_agg(u.b ORDER BY u.at) AS ring
        FROM unnest(rings) WITH ORDINALITY AS u (b, at)
        GROUP BY 1
    ) r USING (place)
    WHERE l.id = n.id
      AND n.is_touched;
END
$$;

-- As 0015 made them.
-- Takes the holds of the calls that fit, in the order they are given, each all of its limits or
-- none. calls is an array of objects: organization_id, id, api_key_id, end_user (hex of its digest),
-- request_id, endpoint, model, is_stream, bound_nanos (null: no price), bound_tokens, least_nanos and
-- least_tokens (the call may be cut down to these; null: it may not), requested_model (by which name
-- the caller asked for the model), price_version, tags, is_moved.
--
-- A call that is_moved has a hold already, which the new one takes the place of: what the old one
-- holds is room for it. Where it is refused the old one stays; where there is none (the sweeper took
-- it) the verdict is 'not_held'.
--
-- One row for each call: 'admitted' with the bounds that were granted, or why not. A refusal by a
-- limit names it with the numbers that prove it: used + held + needed > ceiling. retry_after_s is
-- there when waiting helps.
CREATE OR REPLACE FUNCTION public.admit(
    calls jsonb, admitting_process_id uuid, lease interval, most_end_users integer
)
RETURNS TABLE (
    number integer, verdict text, limit_id uuid, scope text, model text, unit text, period text,
    used bigint, held bigint, ceiling bigint, needed bigint, resets_at timestamptz,
    retry_after_s integer, granted_nanos bigint, granted_tokens bigint,
    requests_ceiling bigint, requests_left bigint, requests_reset_s integer,
    tokens_ceiling bigint, tokens_left bigint, tokens_reset_s integer
)
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    ranks CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    decided_at timestamptz;
    wanted uuid[];
    template_ids uuid[];
    template_users bytea[];
    child_ids uuid[];
    moved_ids uuid[];
    left_ids uuid[];        -- the limits that moved calls count on
    locked uuid[];
    -- The limits, one place each.
    organization_ids uuid[];
    ids uuid[];
    origins uuid[];         -- the template of a child, else the limit itself
    scopes text[];
    api_key_ids uuid[];
    models text[];
    units text[];
    periods text[];
    ceilings bigint[];
    useds bigint[];         -- in the window, or in the whole ring
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];  -- the window's start, or the running bucket's
    resets timestamptz[];   -- the window's end, or when the running bucket has gone by
    rings bigint[];
    touched boolean[];
    call record;
    hold public.holds;
    moved public.holds;
    taken public.holds[] := '{}';
    useds_before bigint[];
    helds_before bigint[];
    rings_before bigint[];
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
    SELECT array_agg(DISTINCT l.id) FILTER (WHERE l.scope <> 'each_end_user'),
           array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user'),
           array_agg(c.end_user) FILTER (WHERE l.scope = 'each_end_user')
    INTO wanted, template_ids, template_users
    FROM (
        SELECT DISTINCT c.organization_id, c.api_key_id, coalesce(decode(c.end_user, 'hex'), '')
        FROM jsonb_to_recordset(calls) AS c (organization_id uuid, api_key_id uuid, end_user text)
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
        UNION ALL
        SELECT l.id, l.scope
        FROM public.limits l
        WHERE l.organization_id = c.organization_id
          AND l.api_key_id IS NULL
          AND l.end_user = c.end_user
          AND l.template_id IS NULL
          AND l.deleted_at IS NULL
        UNION ALL
        SELECT l.id, l.scope
        FROM public.limits l
        WHERE l.organization_id = c.organization_id
          AND l.api_key_id = c.api_key_id
          AND l.end_user = c.end_user
          AND l.template_id IS NULL
          AND l.deleted_at IS NULL
    ) l;

    SELECT array_agg(c.organization_id), array_agg(c.id) INTO organization_ids, moved_ids
    FROM jsonb_to_recordset(calls) AS c (organization_id uuid, id uuid, is_moved boolean)
    WHERE c.is_moved;
    IF moved_ids IS NOT NULL THEN
        SELECT array_agg(DISTINCT counted.limit_id) INTO left_ids
        FROM public.holds h
        CROSS JOIN LATERAL unnest(h.limit_ids) AS counted (limit_id)
        WHERE h.organization_id = ANY (organization_ids)
          AND h.id = ANY (moved_ids);
    END IF;

    LOOP
        IF template_ids IS NOT NULL THEN
            child_ids := public.make_children(template_ids, template_users, most_end_users);
        END IF;
        SELECT array_agg(l.id) INTO locked
        FROM (
            SELECT l.id
            FROM public.limits l
            WHERE l.id = ANY (wanted || child_ids || left_ids)
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
               array_agg(l.api_key_id), array_agg(l.model), array_agg(l.unit), array_agg(l.period),
               array_agg(l.ceiling), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
               array_agg(l.window_at), array_agg(l.resets_at), array_agg(l.ring), array_agg(false)
        INTO organization_ids, ids, origins, scopes, api_key_ids, models, units, periods, ceilings, useds,
             helds, bucket_ss, windows, resets, rings, touched
        FROM public.limits_as_of(locked, decided_at) l;
    END IF;

    FOR call IN
        SELECT c.*,
               -- An admission whose connection broke is repeated, and the server may come to the
               -- first statement when the call is long over. Not EXISTS, which may be answered by
               -- a hash of the whole table.
               coalesce((
                   SELECT h.id FROM public.holds h
                   WHERE h.organization_id = c.organization_id AND h.id = c.id
               ), (
                   SELECT x.id FROM public.ledger_entries x
                   WHERE x.organization_id = c.organization_id AND x.id = c.id
               )) IS NOT NULL AS is_repeated,
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
                   FROM unnest(ids, organization_ids, api_key_ids, models, scopes)
                       WITH ORDINALITY AS l (id, organization_id, api_key_id, model, scope, place)
                   WHERE l.organization_id = c.organization_id
                     AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
                     AND (l.model IS NULL OR l.model IN (c.model, split_part(c.model, ':', 1)))
                     AND (l.scope <> 'end_user' OR l.id = ANY (own.limit_ids))
                     -- One that was deleted meanwhile is here only to be left.
                     AND l.id = ANY (wanted || child_ids)
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
            -- The end user's own limits, and the templates' counters for them.
            SELECT ARRAY(
                SELECT l.id
                FROM public.limits l
                WHERE l.id = ANY (wanted)
                  AND l.end_user = decode(c.end_user, 'hex')
                UNION ALL
                SELECT p.child_id
                FROM unnest(template_users, child_ids) AS p (end_user, child_id)
                WHERE p.end_user = coalesce(decode(c.end_user, 'hex'), '')
            ) AS limit_ids
        ) own
        ORDER BY c.place
    LOOP
        number := call.place;
        moved := NULL;
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
                retry_at := coalesce(resets[i], 'infinity');
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
                resets_at := CASE WHEN bucket_ss[i] IS NULL THEN resets[i] END;
                retry_after_s := ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
            END IF;
        END LOOP;

        IF verdict = 'admitted' THEN
            hold := NULL;
            hold.limit_ids := '{}';
            hold.limit_windows := '{}';
            FOREACH i IN ARRAY call.places LOOP
                need := CASE units[i] WHEN 'usd' THEN granted_nanos
                                      WHEN 'tokens' THEN granted_tokens
                                      ELSE 1 END;
                touched[i] := true;
                hold.limit_ids := hold.limit_ids || ids[i];
                hold.limit_windows := hold.limit_windows || windows[i];
                IF bucket_ss[i] IS NULL THEN
                    helds[i] := helds[i] + need;
                ELSE
                    slot := extract(epoch FROM windows[i])::bigint / bucket_ss[i] % 61 + 1;
                    rings[i][slot] := rings[i][slot] + need;
                    useds[i] := useds[i] + need;
                END IF;
            END LOOP;
            hold.organization_id := call.organization_id;
            hold.id := call.id;
            hold.api_key_id := call.api_key_id;
            hold.end_user := decode(call.end_user, 'hex');
            hold.request_id := call.request_id;
            hold.endpoint := call.endpoint;
            hold.model := call.model;
            hold.is_stream := call.is_stream;
            hold.bound_nanos := granted_nanos;
            hold.bound_tokens := granted_tokens;
            hold.requested_model := call.requested_model;
            hold.price_version := call.price_version;
            hold.tags := call.tags;
            hold.process_id := admitting_process_id;
            hold.lease_until := decided_at + lease;
            hold.created_at := decided_at;
            IF call.is_moved THEN
                -- In its place, so that a settlement that waits for the row finds what it became.
                UPDATE public.holds h
                SET model = hold.model,
                    is_stream = hold.is_stream,
                    bound_nanos = hold.bound_nanos,
                    bound_tokens = hold.bound_tokens,
                    limit_ids = hold.limit_ids,
                    limit_windows = hold.limit_windows,
                    lease_until = hold.lease_until,
                    requested_model = hold.requested_model,
                    price_version = hold.price_version
                WHERE h.organization_id = call.organization_id
                  AND h.id = call.id;
            ELSE
                taken := taken || hold;
            END IF;
        ELSIF call.is_moved THEN
            useds := useds_before;
            helds := helds_before;
            rings := rings_before;
        END IF;

        -- The tightest rates of the caller, as they stand after this call.
        FOREACH i IN ARRAY call.places LOOP
            remaining := greatest(0, ceilings[i] - useds[i] - helds[i]);
            IF units[i] = 'requests' AND remaining < coalesce(requests_left, remaining + 1) THEN
                requests_ceiling := ceilings[i];
                requests_left := remaining;
                requests_reset_s := ceil(extract(epoch FROM resets[i] - decided_at));
            ELSIF units[i] = 'tokens' AND remaining < coalesce(tokens_left, remaining + 1) THEN
                tokens_ceiling := ceilings[i];
                tokens_left := remaining;
                tokens_reset_s := ceil(extract(epoch FROM resets[i] - decided_at));
            END IF;
        END LOOP;
        RETURN NEXT;
    END LOOP;

    INSERT INTO public.holds SELECT h.* FROM unnest(taken) h;
    IF true = ANY (touched) THEN
        PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
    END IF;
END
$$;

-- Ends calls: the hold goes, the limits move from held to used, one entry is written. entries is an
-- array of objects: organization_id, id (the hold's), correction_id (for the entry that corrects the
-- sweeper's, should that have been faster), and what became of the call, by the names of the columns.
-- With only_expired a hold whose lease was renewed stays, and one of a call that has its entry goes
-- without another: so the sweeper says it.
--
-- One row for each entry that was written now. No row: settled already, or never admitted. A row of
-- kind 'alert' says that the use of the limit of that id has reached the next of its alert_percents.
CREATE OR REPLACE FUNCTION public.settle(entries jsonb, only_expired boolean)
RETURNS TABLE (id uuid, kind text, cost_nanos bigint, bound_nanos bigint)
LANGUAGE plpgsql
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    settled_at timestamptz;
    callers uuid[];         -- the organizations
    hold_ids uuid[];
    seen uuid[];
    wanted uuid[];
    interrupted uuid[];
    locked uuid[];
    ids uuid[];
    units text[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    alerts_at bigint[];
    touched boolean[];
    call record;
    hold public.holds;
    earlier public.ledger_entries;
    entry public.ledger_entries;
    written public.ledger_entries[] := '{}';
    is_over boolean;
    used_more bigint;
    held_less bigint;
    i integer;
    slot integer;
BEGIN
    -- Before the limits, as does whoever drops a month.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
    SELECT array_agg(DISTINCT e.organization_id), array_agg(e.id) INTO callers, hold_ids
    FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid);
    SELECT array_agg(DISTINCT h.id), array_agg(DISTINCT counted.limit_id) INTO seen, wanted
    FROM public.holds h
    LEFT JOIN LATERAL unnest(h.limit_ids) AS counted (limit_id) ON true
    WHERE h.organization_id = ANY (callers)
      AND h.id = ANY (hold_ids);
    IF NOT only_expired AND NOT hold_ids <@ coalesce(seen, '{}') THEN
        -- Ended already, or never begun: if the sweeper ended one, its entry may want a correction.
        SELECT array_agg(DISTINCT x.id), wanted || array_agg(DISTINCT counted.limit_id)
        INTO interrupted, wanted
        FROM public.ledger_entries x
        LEFT JOIN LATERAL unnest(x.limit_ids) AS counted (limit_id) ON true
        WHERE x.organization_id = ANY (callers)
          AND x.id = ANY (hold_ids)
          AND x.outcome = 'interrupted'
          AND x.kind = 'call';
    END IF;
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.id = ANY (wanted)
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    settled_at := clock_timestamp();

    IF locked IS NOT NULL THEN
        SELECT array_agg(l.id), array_agg(l.unit), array_agg(l.used), array_agg(l.held),
               array_agg(l.bucket_s), array_agg(l.window_at), array_agg(l.ring),
               array_agg(l.alert_at), array_agg(false)
        INTO ids, units, useds, helds, bucket_ss, windows, rings, alerts_at, touched
        FROM public.limits_as_of(locked, settled_at) l;
    END IF;

    FOR call IN
        SELECT *
        FROM jsonb_to_recordset(entries) AS e (
            organization_id uuid, id uuid, correction_id uuid, model text, outcome text,
            status smallint, input_tokens bigint, cached_input_tokens bigint,
            output_tokens bigint, cost_nanos bigint, cost_source text, upstream_key_id uuid,
            upstream_request_id text, first_byte_ms integer, duration_ms integer
        )
    LOOP
        entry := NULL;
        entry.cost_nanos := call.cost_nanos;
        entry.cost_source := call.cost_source;
        entry.input_tokens := call.input_tokens;
        entry.output_tokens := call.output_tokens;
        -- A hold that was taken after the locks were is left for the next time.
        DELETE FROM public.holds h
        WHERE h.organization_id = call.organization_id
          AND h.id = call.id
          AND h.id = ANY (seen)
          AND (NOT only_expired OR h.lease_until < settled_at)
        RETURNING h.* INTO hold;
        IF FOUND THEN
            IF NOT coalesce(hold.limit_ids <@ ids, hold.limit_ids = '{}') AND EXISTS (
                SELECT FROM public.limits l
                WHERE l.id = ANY (hold.limit_ids)
                  AND (ids IS NULL OR l.id <> ALL (ids))
            ) THEN
                -- It was moved since its limits were read: all of the batch is done again.
                RAISE EXCEPTION 'a hold was moved' USING ERRCODE = 'serialization_failure';
            END IF;
            entry.id := hold.id;
            entry.kind := 'call';
            entry.requests := 1;
            -- A late repetition of an admission can just miss that the call is over.
            is_over := only_expired AND EXISTS (
                SELECT
                FROM public.ledger_entries x
                WHERE x.organization_id = hold.organization_id AND x.id = hold.id
            );
            IF is_over THEN
                entry.requests := 0;
                entry.cost_nanos := 0;
            ELSIF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
                entry.cost_nanos := hold.bound_nanos;
                entry.cost_source := 'bound';
            ELSIF call.cost_source = 'estimated' THEN
                entry.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
            END IF;
            entry.tokens := CASE
                WHEN is_over OR call.cost_source = 'not_charged' THEN 0
                ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0)
            END;
        ELSE
            is_over := false;
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
            entry.id := call.correction_id;
            entry.kind := 'correction';
            entry.amends_id := earlier.id;
            entry.requests := 0;
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
            entry.tokens := CASE
                WHEN call.cost_source = 'not_charged' THEN 0
                ELSE coalesce(call.input_tokens + call.output_tokens, earlier.tokens)
            END - earlier.tokens;
            entry.cost_nanos := call.cost_nanos - coalesce(earlier.cost_nanos, 0);
            entry.input_tokens := call.input_tokens - coalesce(earlier.input_tokens, 0);
            entry.output_tokens := call.output_tokens - coalesce(earlier.output_tokens, 0);
        END IF;

        FOR n IN 1 .. cardinality(hold.limit_ids) LOOP
            i := array_position(ids, hold.limit_ids[n]);
            CONTINUE WHEN i IS NULL;
            touched[i] := true;
            used_more := CASE units[i] WHEN 'usd' THEN entry.cost_nanos
                                       WHEN 'tokens' THEN entry.tokens
                                       WHEN 'requests' THEN entry.requests
                                       ELSE 0 END;
            held_less := CASE WHEN entry.kind = 'correction' THEN 0
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
            END IF;
        END LOOP;
        CONTINUE WHEN is_over;

        entry.organization_id := hold.organization_id;
        entry.api_key_id := hold.api_key_id;
        entry.end_user := hold.end_user;
        entry.request_id := hold.request_id;
        entry.endpoint := hold.endpoint;
        entry.model := call.model;
        entry.requested_model := coalesce(hold.requested_model, hold.model);
        entry.is_stream := hold.is_stream;
        entry.outcome := call.outcome;
        entry.status := call.status;
        entry.cached_input_tokens := call.cached_input_tokens;
        entry.bound_nanos := hold.bound_nanos;
        entry.bound_tokens := hold.bound_tokens;
        entry.price_version := hold.price_version;
        entry.limit_ids := hold.limit_ids;
        entry.limit_windows := hold.limit_windows;
        entry.counted_at := settled_at;
        entry.upstream_key_id := coalesce(call.upstream_key_id, hold.upstream_key_id);
        entry.upstream_request_id := coalesce(call.upstream_request_id, hold.upstream_request_id);
        entry.first_byte_ms := call.first_byte_ms;
        entry.duration_ms := call.duration_ms;
        entry.tags := hold.tags;
        entry.created_at := settled_at;
        written := written || entry;
        id := hold.id;
        kind := entry.kind;
        cost_nanos := entry.cost_nanos;
        bound_nanos := hold.bound_nanos;
        RETURN NEXT;
    END LOOP;

    INSERT INTO public.ledger_entries SELECT e.* FROM unnest(written) e;
    IF true = ANY (touched) THEN
        PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
        FOR i IN 1 .. cardinality(ids) LOOP
            IF useds[i] >= alerts_at[i] AND touched[i] THEN
                id := ids[i];
                kind := 'alert';
                cost_nanos := NULL;
                bound_nanos := NULL;
                RETURN NEXT;
            END IF;
        END LOOP;
    END IF;
END
$$;
