-- A month's partition is made apart and attached. Attaching locks the ledger in a mode that neither
-- readers nor calls conflict with, and the default partition, which no call writes to, for itself.
-- Every wait for a lock of the ledger ends after a tenth of a second, so that nobody queues behind it.
-- depends: 0017_one_transaction

-- Makes the partition of a month, if it has none. Entries of the month that were written to the
-- default partition meanwhile move to it. False: it has one, or more entries than max_moved would
-- have to move, which would hold up calls.
CREATE FUNCTION public.make_ledger_partition(month timestamptz, max_moved integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name CONSTANT text := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
    first_id CONSTANT uuid := public.uuid7_floor(month);
    end_id CONSTANT uuid := public.uuid7_floor(
        (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
    );
    strays integer;
BEGIN
    IF to_regclass('ledger_partitions.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', '100ms', true);
    SELECT count(*) INTO strays
    FROM (
        SELECT
        FROM ledger_partitions.ledger_entries_default
        WHERE id >= first_id
          AND id < end_id
        LIMIT max_moved + 1
    ) stray;
    IF strays > max_moved THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE ledger_partitions.%I (LIKE public.ledger_entries INCLUDING ALL)', name
    );
    EXECUTE format(
        'CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_partitions.%I'
        ' FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()',
        name
    );
    -- In the order in which readers of the ledger lock them.
    LOCK TABLE ONLY public.ledger_entries IN SHARE UPDATE EXCLUSIVE MODE;
    LOCK TABLE ledger_partitions.ledger_entries_default IN ACCESS EXCLUSIVE MODE;
    IF strays > 0 THEN
        EXECUTE format(
            'INSERT INTO ledger_partitions.%I'
            ' SELECT * FROM ledger_partitions.ledger_entries_default WHERE id >= $1 AND id < $2',
            name
        ) USING first_id, end_id;
        ALTER TABLE ledger_partitions.ledger_entries_default
            DISABLE TRIGGER ledger_entries_insert_only;
        DELETE FROM ledger_partitions.ledger_entries_default WHERE id >= first_id AND id < end_id;
        ALTER TABLE ledger_partitions.ledger_entries_default
            ENABLE TRIGGER ledger_entries_insert_only;
    END IF;
    EXECUTE format(
        'ALTER TABLE public.ledger_entries ATTACH PARTITION ledger_partitions.%I'
        ' FOR VALUES FROM (%L) TO (%L)',
        name, first_id, end_id
    );
    RETURN true;
END
$$;

-- For processes of the release before, which run on while this one is rolled out.
CREATE OR REPLACE FUNCTION public.make_ledger_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    made integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('rialto.ledger_partitions')) THEN
        RETURN 0;
    END IF;
    FOR ahead IN 0 .. months_ahead LOOP
        IF public.make_ledger_partition(
            (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))
                AT TIME ZONE 'UTC',
            5000
        ) THEN
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

-- Drops a month that is frozen, and adds what its entries counted to what is carried by limits whose
-- window still runs. False: somebody read the ledger all the time, and nothing was changed.
--
-- The drop needs the ledger for itself, and whoever comes while it waits for that waits behind it. So
-- it waits for a tenth of a second at most, then lets everybody pass and tries again. The month's own
-- lock comes first, since no call waits for that one, and the limits' are waited for half as long.
CREATE OR REPLACE FUNCTION public.drop_ledger_month(
    month timestamptz, organization_ids uuid[], limit_ids uuid[], windows timestamptz[],
    amounts bigint[], attempts integer
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name CONSTANT text := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    FOR attempt IN 1 .. attempts LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            EXECUTE format('LOCK TABLE ledger_partitions.%I IN ACCESS EXCLUSIVE MODE', name);
            LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', '50ms', true);
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
            EXECUTE format('DROP TABLE ledger_partitions.%I', name);
            RETURN true;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    RETURN false;
END
$$;
