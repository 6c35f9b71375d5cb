DROP FUNCTION public.sweep_children(integer);
DROP FUNCTION public.limit_is_idle(public.limits, timestamptz);
DROP FUNCTION public.admit(jsonb, uuid, interval, integer);
DROP FUNCTION public.settle(jsonb, boolean);
DROP FUNCTION public.write_limits(
    uuid[], bigint[], bigint[], integer[], timestamptz[], bigint[], boolean[]
);
DROP FUNCTION public.make_children(uuid[], bytea[], integer);
DROP FUNCTION public.limits_as_of(uuid[], timestamptz);
DROP FUNCTION public.limit_child_id(uuid, bytea);
DROP INDEX public.limits_template_id_idx;
DROP INDEX public.limits_applying_idx;
ALTER TABLE public.limits DROP CONSTRAINT limits_scope_child, DROP COLUMN children;

-- As 0009 made them.
CREATE INDEX limits_organization_id_idx ON public.limits (organization_id)
    WHERE template_id IS NULL AND deleted_at IS NULL;

-- Locked limits as they are at an instant: windows and rings rolled, raises applied.
CREATE FUNCTION public.limits_as_of(locked uuid[], instant timestamptz)
RETURNS TABLE (
    organization_id uuid, id uuid, scope text, api_key_id uuid, model text, unit text, period text,
    ceiling bigint, used bigint, held bigint, bucket_s integer, window_at timestamptz,
    resets_at timestamptz, ring bigint[]
)
LANGUAGE sql STABLE AS $$
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.model, l.unit, l.period,
           CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END,
           CASE WHEN l.bucket_s IS NOT NULL THEN (SELECT sum(n) FROM unnest(l.ring) n)::bigint
                WHEN l.window_start = l.window_at THEN l.used
                ELSE 0 END,
           l.held, l.bucket_s, l.window_at,
           CASE WHEN l.bucket_s IS NULL THEN public.limit_resets_at(l.period, l.window_at)
                ELSE l.window_at + 61 * l.bucket_s * interval '1 second' END,
           l.ring
    FROM (
        SELECT l.*, public.limit_ring(l.buckets, l.bucket_at, l.bucket_s, l.window_at) AS ring
        FROM (
            SELECT l.*,
                   -- A clock that went back stays with what is newest until it has caught up.
                   CASE WHEN l.bucket_s IS NULL
                        THEN greatest(l.window_start, public.limit_window(l.period, instant))
                        ELSE greatest(l.bucket_at, date_bin(
                            l.bucket_s * interval '1 second', instant, 'epoch'
                        )) END AS window_at
            FROM (
                SELECT l.*, public.limit_bucket_s(l.unit, l.period) AS bucket_s
                FROM public.limits l
                WHERE l.id = ANY (locked)
            ) l
        ) l
    ) l
    ORDER BY l.organization_id, l.id
$$;

-- Writes back what has changed of locked limits. A window that has rolled begins at nothing.
CREATE FUNCTION public.write_limits(
    organization_ids uuid[], ids uuid[], useds bigint[], helds bigint[], bucket_ss integer[],
    windows timestamptz[], rings bigint[], touched boolean[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. coalesce(cardinality(ids), 0) LOOP
        CONTINUE WHEN NOT touched[i];
        IF bucket_ss[i] IS NULL THEN
            UPDATE public.limits l
            SET held = helds[i],
                used = useds[i],
                carried = CASE WHEN l.window_start = windows[i] THEN l.carried ELSE 0 END,
                alerted_percent = CASE WHEN l.window_start = windows[i] THEN l.alerted_percent
                                       ELSE 0 END,
                window_start = windows[i]
            WHERE l.organization_id = organization_ids[i]
              AND l.id = ids[i];
        ELSE
            UPDATE public.limits l
            SET buckets = ARRAY(SELECT n FROM unnest(rings[i:i]) n),
                bucket_at = windows[i]
            WHERE l.organization_id = organization_ids[i]
              AND l.id = ids[i];
        END IF;
    END LOOP;
END
$$;

-- Takes the holds of the calls that fit, in the order they are given, each all of its limits or
-- none. calls is an array of objects: organization_id, id, api_key_id, request_id, endpoint, model,
-- is_stream, bound_nanos (null: no price), bound_tokens, price_version, tags.
--
-- One row for each call: 'admitted', or why not. A refusal by a limit names it with the numbers that
-- prove it: used + held + needed > ceiling. retry_after_s is there when waiting helps.
CREATE FUNCTION public.admit(calls jsonb, admitting_process_id uuid, lease interval)
RETURNS TABLE (
    number integer, verdict text, limit_id uuid, scope text, model text, unit text, period text,
    used bigint, held bigint, ceiling bigint, needed bigint, resets_at timestamptz,
    retry_after_s integer,
    requests_ceiling bigint, requests_left bigint, requests_reset_s integer,
    tokens_ceiling bigint, tokens_left bigint, tokens_reset_s integer
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ranks CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    decided_at timestamptz;
    locked uuid[];
    -- The limits, one place each.
    organization_ids uuid[];
    ids uuid[];
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
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.template_id IS NULL
          AND l.deleted_at IS NULL
          AND l.organization_id IN (
              SELECT (c ->> 'organization_id')::uuid FROM jsonb_array_elements(calls) c
          )
          AND (
              l.scope = 'organization'
              OR l.scope = 'api_key'
              AND l.api_key_id IN (
                  SELECT (c ->> 'api_key_id')::uuid FROM jsonb_array_elements(calls) c
              )
          )
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();

    SELECT array_agg(l.organization_id), array_agg(l.id), array_agg(l.scope),
           array_agg(l.api_key_id), array_agg(l.model), array_agg(l.unit), array_agg(l.period),
           array_agg(l.ceiling), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
           array_agg(l.window_at), array_agg(l.resets_at), array_agg(l.ring), array_agg(false)
    INTO organization_ids, ids, scopes, api_key_ids, models, units, periods, ceilings, useds,
         helds, bucket_ss, windows, resets, rings, touched
    FROM public.limits_as_of(locked, decided_at) l;

    FOR call IN
        SELECT c.*, h.id IS NOT NULL AS is_repeated,
               CASE
                   WHEN k.id IS NULL THEN 'invalid_api_key'
                   WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                   WHEN k.expires_at <= decided_at THEN 'expired_api_key'
                   WHEN o.status <> 'active' THEN 'organization_inactive'
                   ELSE 'admitted'
               END AS standing,
               coalesce(applying.places, '{}') AS places
        FROM ROWS FROM (
            jsonb_to_recordset(calls) AS (
                organization_id uuid, id uuid, api_key_id uuid, request_id text, endpoint text,
                model text, is_stream boolean, bound_nanos bigint, bound_tokens bigint,
                price_version integer, tags jsonb
            )
        ) WITH ORDINALITY AS c (
            organization_id, id, api_key_id, request_id, endpoint, model, is_stream, bound_nanos,
            bound_tokens, price_version, tags, place
        )
        LEFT JOIN public.holds h ON h.organization_id = c.organization_id AND h.id = c.id
        LEFT JOIN public.api_keys k
            ON k.id = c.api_key_id AND k.organization_id = c.organization_id
        LEFT JOIN public.organizations o ON o.id = c.organization_id
        LEFT JOIN LATERAL (
            SELECT array_agg(l.place::integer ORDER BY l.place) AS places
            FROM unnest(organization_ids, api_key_ids, models)
                WITH ORDINALITY AS l (organization_id, api_key_id, model, place)
            WHERE l.organization_id = c.organization_id
              AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
              AND (l.model IS NULL OR l.model IN (c.model, split_part(c.model, ':', 1)))
        ) applying ON true
        ORDER BY c.place
    LOOP
        number := call.place;
        verdict := CASE WHEN call.is_repeated THEN 'admitted' ELSE call.standing END;
        limit_id := NULL;
        resets_at := NULL;
        retry_after_s := NULL;
        requests_left := NULL;
        tokens_left := NULL;
        IF call.is_repeated OR verdict <> 'admitted' THEN
            RETURN NEXT;
            CONTINUE;
        END IF;

        worst_rank := 0;
        FOREACH i IN ARRAY call.places LOOP
            need := CASE units[i] WHEN 'usd' THEN call.bound_nanos
                                  WHEN 'tokens' THEN call.bound_tokens
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
                limit_id := ids[i];
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
            FOREACH i IN ARRAY call.places LOOP
                need := CASE units[i] WHEN 'usd' THEN call.bound_nanos
                                      WHEN 'tokens' THEN call.bound_tokens
                                      ELSE 1 END;
                touched[i] := true;
                IF bucket_ss[i] IS NULL THEN
                    helds[i] := helds[i] + need;
                ELSE
                    slot := extract(epoch FROM windows[i])::bigint / bucket_ss[i] % 61 + 1;
                    rings[i][slot] := rings[i][slot] + need;
                    useds[i] := useds[i] + need;
                END IF;
            END LOOP;
            INSERT INTO public.holds (
                organization_id, id, api_key_id, request_id, endpoint, model, is_stream,
                bound_nanos, bound_tokens, price_version, tags, limit_ids, limit_windows,
                process_id, lease_until
            )
            VALUES (
                call.organization_id, call.id, call.api_key_id, call.request_id, call.endpoint,
                call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                call.price_version, call.tags,
                ARRAY(SELECT ids[place] FROM unnest(call.places) WITH ORDINALITY p (place, n)
                      ORDER BY n),
                ARRAY(SELECT windows[place] FROM unnest(call.places) WITH ORDINALITY p (place, n)
                      ORDER BY n),
                admitting_process_id, decided_at + lease
            );
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

    PERFORM public.write_limits(
        organization_ids, ids, useds, helds, bucket_ss, windows, rings, touched
    );
END
$$;

-- Ends calls: the hold goes, the limits move from held to used, one entry is written. entries is an
-- array of objects: organization_id, id (the hold's), correction_id (for the entry that corrects the
-- sweeper's, should that have been faster), only_if_expired (said by the sweeper: a hold whose lease
-- was renewed stays), and what became of the call, by the names of the columns.
--
-- One row for each entry that was written now. No row: settled already, or never admitted.
CREATE FUNCTION public.settle(entries jsonb)
RETURNS TABLE (id uuid, kind text, cost_nanos bigint, bound_nanos bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    settled_at timestamptz;
    locked uuid[];
    organization_ids uuid[];
    ids uuid[];
    units text[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
    entry record;
    hold public.holds;
    earlier public.ledger_entries;
    counted_tokens bigint;
    counted_windows timestamptz[];
    used_more bigint;
    held_less bigint;
    i integer;
    slot integer;
BEGIN
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE (l.organization_id, l.id) IN (
            SELECT h.organization_id, unnest(h.limit_ids)
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            JOIN public.holds h USING (organization_id, id)
            UNION
            SELECT x.organization_id, unnest(x.limit_ids)
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            JOIN public.ledger_entries x USING (organization_id, id)
            WHERE x.outcome = 'interrupted'
        )
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    settled_at := clock_timestamp();

    SELECT array_agg(l.organization_id), array_agg(l.id), array_agg(l.unit), array_agg(l.used),
           array_agg(l.held), array_agg(l.bucket_s), array_agg(l.window_at), array_agg(l.ring),
           array_agg(false)
    INTO organization_ids, ids, units, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, settled_at) l;

    FOR entry IN
        SELECT *
        FROM jsonb_to_recordset(entries) AS e (
            organization_id uuid, id uuid, correction_id uuid, only_if_expired boolean, model text,
            outcome text, status smallint, input_tokens bigint, cached_input_tokens bigint,
            output_tokens bigint, cost_nanos bigint, cost_source text, upstream_request_id text,
            first_byte_ms integer, duration_ms integer
        )
    LOOP
        DELETE FROM public.holds h
        WHERE h.organization_id = entry.organization_id
          AND h.id = entry.id
          AND (entry.only_if_expired IS NOT TRUE OR h.lease_until < settled_at)
          -- One that was taken after the locks were is left for the next time.
          AND h.limit_ids <@ coalesce(locked, '{}')
        RETURNING h.* INTO hold;
        IF FOUND THEN
            kind := 'call';
            IF entry.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
                entry.cost_nanos := hold.bound_nanos;
                entry.cost_source := 'bound';
            ELSIF entry.cost_source = 'estimated' THEN
                entry.cost_nanos := least(entry.cost_nanos, hold.bound_nanos);
            END IF;
            counted_tokens := CASE
                WHEN entry.cost_source = 'not_charged' THEN 0
                ELSE coalesce(entry.input_tokens + entry.output_tokens, hold.bound_tokens, 0)
            END;
        ELSE
            CONTINUE WHEN entry.only_if_expired;
            SELECT x.* INTO earlier
            FROM public.ledger_entries x
            WHERE x.organization_id = entry.organization_id
              AND x.id = entry.id
              AND x.outcome = 'interrupted'
              AND x.limit_ids <@ coalesce(locked, '{}')
              AND NOT EXISTS (
                  SELECT
                  FROM public.ledger_entries y
                  WHERE y.organization_id = x.organization_id
                    AND y.amends_id = x.id
                    AND y.kind = 'correction'
              );
            -- What is no better known than before needs no correction.
            CONTINUE WHEN NOT FOUND OR entry.cost_nanos IS NULL;
            kind := 'correction';
            hold := ROW(
                earlier.organization_id, earlier.id, earlier.api_key_id, earlier.end_user,
                earlier.request_id, earlier.endpoint, earlier.requested_model, earlier.is_stream,
                earlier.bound_nanos, earlier.bound_tokens, earlier.limit_ids,
                earlier.limit_windows, NULL, NULL, earlier.price_version,
                earlier.upstream_key_id, NULL, earlier.tags, NULL
            );
            counted_tokens := CASE
                WHEN entry.cost_source = 'not_charged' THEN 0
                ELSE coalesce(entry.input_tokens + entry.output_tokens, earlier.tokens)
            END - earlier.tokens;
            entry.cost_nanos := entry.cost_nanos - coalesce(earlier.cost_nanos, 0);
            entry.input_tokens := entry.input_tokens - coalesce(earlier.input_tokens, 0);
            entry.output_tokens := entry.output_tokens - coalesce(earlier.output_tokens, 0);
        END IF;

        counted_windows := hold.limit_windows;
        FOR n IN 1 .. cardinality(hold.limit_ids) LOOP
            i := array_position(ids, hold.limit_ids[n]);
            CONTINUE WHEN i IS NULL;
            touched[i] := true;
            used_more := CASE units[i] WHEN 'usd' THEN entry.cost_nanos
                                       WHEN 'tokens' THEN counted_tokens
                                       WHEN 'requests' THEN (kind = 'call')::integer
                                       ELSE 0 END;
            held_less := CASE WHEN kind = 'correction' THEN 0
                              WHEN units[i] = 'usd' THEN hold.bound_nanos
                              WHEN units[i] = 'tokens' THEN hold.bound_tokens
                              ELSE 1 END;
            IF bucket_ss[i] IS NULL THEN
                useds[i] := useds[i] + used_more;
                helds[i] := helds[i] - held_less;
                counted_windows[n] := windows[i];
            ELSIF hold.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second' THEN
                -- Counted in full when it was admitted; what was not used is given back there.
                slot := extract(epoch FROM hold.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                rings[i][slot] := rings[i][slot] + used_more - held_less;
            END IF;
        END LOOP;

        INSERT INTO public.ledger_entries (
            organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint,
            model, requested_model, is_stream, outcome, status, requests, tokens, input_tokens,
            cached_input_tokens, output_tokens, cost_nanos, cost_source, bound_nanos, bound_tokens,
            price_version, limit_ids, limit_windows, counted_at, upstream_key_id,
            upstream_request_id, first_byte_ms, duration_ms, tags
        )
        VALUES (
            hold.organization_id,
            CASE kind WHEN 'call' THEN hold.id ELSE entry.correction_id END,
            kind,
            CASE kind WHEN 'correction' THEN hold.id END,
            hold.api_key_id, hold.end_user, hold.request_id, hold.endpoint, entry.model,
            hold.model, hold.is_stream, entry.outcome, entry.status, (kind = 'call')::integer,
            counted_tokens, entry.input_tokens, entry.cached_input_tokens, entry.output_tokens,
            entry.cost_nanos, entry.cost_source, hold.bound_nanos, hold.bound_tokens,
            hold.price_version, hold.limit_ids, counted_windows, settled_at, hold.upstream_key_id,
            coalesce(entry.upstream_request_id, hold.upstream_request_id), entry.first_byte_ms,
            entry.duration_ms, hold.tags
        );
        id := hold.id;
        cost_nanos := entry.cost_nanos;
        bound_nanos := hold.bound_nanos;
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(
        organization_ids, ids, useds, helds, bucket_ss, windows, rings, touched
    );
END
$$;
