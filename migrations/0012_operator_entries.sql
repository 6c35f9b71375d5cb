-- What an operator does to the books: credits, the repair of counters, and months that are dropped.
--
-- Lock order, everywhere: the organization (its chain of audit events), the ledger as a whole,
-- templates, other limits, each by (organization_id, id), then holds. Admission and settlement never lock an organization.
-- depends: 0011_end_users

-- Gives money of a call back: one entry of kind credit, and the call's money limits have used that
-- much less in the windows that run now, which may take them below zero: what is given back this
-- month can be spent this month.
--
-- verdict: 'credited'; 'repeated' if the same credit is there already; 'id_taken' if something else
-- has its id; 'no_call', 'not_a_call'; or 'too_much', when it is more than left_nanos: the cost of
-- the call with its corrections and earlier credits.
CREATE FUNCTION public.credit(
    call_organization_id uuid, call_id uuid, credit_id uuid, credit_nanos bigint, credit_note text
) RETURNS TABLE (verdict text, left_nanos bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    call public.ledger_entries;
    same public.ledger_entries;
    locked uuid[];
    credited_at timestamptz;
    ids uuid[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
BEGIN
    -- One credit of an organization at a time; before the ledger is touched, as in every change.
    PERFORM FROM public.organizations o WHERE o.id = call_organization_id FOR NO KEY UPDATE;

    SELECT x.* INTO call
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = call_id;
    IF call.id IS NULL OR call.kind <> 'call' THEN
        verdict := CASE WHEN call.id IS NULL THEN 'no_call' ELSE 'not_a_call' END;
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.organization_id = call_organization_id
          AND l.id = ANY (call.limit_ids)
          AND l.unit = 'usd'
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    credited_at := clock_timestamp();

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

    SELECT array_agg(l.id), array_agg(l.used - credit_nanos), array_agg(l.held),
           array_agg(l.bucket_s), array_agg(l.window_at), array_agg(l.ring), array_agg(true)
    INTO ids, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, credited_at) l;

    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, cost_nanos, cost_source, price_version, limit_ids,
        limit_windows, counted_at, tags, note
    )
    VALUES (
        call_organization_id, credit_id, 'credit', call_id, call.api_key_id, call.end_user,
        call.request_id, call.endpoint, call.model, call.requested_model, call.is_stream,
        -credit_nanos, 'manual', call.price_version, call.limit_ids,
        ARRAY(
            SELECT coalesce(windows[array_position(ids, c.limit_id)], c.window_at)
            FROM unnest(call.limit_ids, call.limit_windows)
                WITH ORDINALITY AS c (limit_id, window_at, place)
            ORDER BY c.place
        ),
        credited_at, call.tags, credit_note
    );

    PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
END
$$;

-- Takes off counters what they are off by, as the proof found: for each, the limit, what it counts
-- ('used' or 'held'), its window or bucket, and the drift, which is what stands less what is proven.
--
-- Calls that come and go move a counter and its proof alike, so a drift stays what it was while they
-- do, and the proof, which takes its time, needs no locks. A window or bucket that has gone by since
-- needs no repair. One row for each counter that was set: what stood, and what stands now.
CREATE FUNCTION public.repair_limits(
    repaired_organization_id uuid, limit_ids uuid[], counters text[], counted timestamptz[],
    drifts bigint[]
) RETURNS TABLE (
    limit_id uuid, counter text, window_at timestamptz, stands bigint, proven bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked uuid[];
    ids uuid[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
    i integer;
    slot integer;
BEGIN
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.organization_id = repaired_organization_id
          AND l.id = ANY (limit_ids)
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;

    SELECT array_agg(l.id), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
           array_agg(l.window_at), array_agg(l.ring), array_agg(false)
    INTO ids, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, clock_timestamp()) l;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := helds[i];
            helds[i] := stands - drifts[n];
        ELSIF bucket_ss[i] IS NULL THEN
            CONTINUE WHEN windows[i] <> counted[n];
            stands := useds[i];
            useds[i] := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n] <= windows[i] - 61 * bucket_ss[i] * interval '1 second';
            slot := extract(epoch FROM counted[n])::bigint / bucket_ss[i] % 61 + 1;
            stands := rings[i][slot];
            rings[i][slot] := stands - drifts[n];
        END IF;
        touched[i] := true;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
END
$$;

-- The months of which entries are kept, by their starts in UTC.
CREATE FUNCTION public.ledger_months() RETURNS TABLE (month timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT to_date(named.month, 'YYYY_MM')::timestamp AT TIME ZONE 'UTC'
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL substring(c.relname::text FROM '^ledger_entries_(\d{4}_\d{2})$')
        AS named (month)
    WHERE i.inhparent = 'public.ledger_entries'::regclass
      AND named.month IS NOT NULL
$$;

-- Nothing is inserted into the month until the transaction ends; it can be read.
CREATE FUNCTION public.freeze_ledger_month(month timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'LOCK TABLE ledger_partitions.%I IN SHARE MODE',
        'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')
    );
END
$$;

-- Drops a month that is frozen, and adds what its entries counted to what is carried by limits whose
-- window still runs. False: somebody read the ledger all the time, and nothing was changed.
--
-- The drop needs the ledger for itself, and whoever comes while it waits for that waits behind it. So
-- it waits for a tenth of a second at most, then lets everybody pass and tries again.
CREATE FUNCTION public.drop_ledger_month(
    month timestamptz, organization_ids uuid[], limit_ids uuid[], windows timestamptz[],
    amounts bigint[], attempts integer
) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    FOR attempt IN 1 .. attempts LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE;
            PERFORM
            FROM public.limits l
            WHERE (l.organization_id, l.id) IN (SELECT * FROM unnest(organization_ids, limit_ids))
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE;
            UPDATE public.limits l
            SET carried = l.carried + c.amount
            FROM unnest(organization_ids, limit_ids, windows, amounts)
                AS c (organization_id, limit_id, window_at, amount)
            WHERE l.organization_id = c.organization_id
              AND l.id = c.limit_id
              AND l.window_start = c.window_at;
            EXECUTE format(
                'DROP TABLE ledger_partitions.%I',
                'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')
            );
            RETURN true;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    RETURN false;
END
$$;
