-- Make the partition of a month. Returns false when it exists, or when too many entries would move.
--
-- Entries of the month that are in the default partition move to the new one. More than max_moved
-- would hold up calls, so then nothing is done.
--
-- The partition is made apart and attached: that lock of the ledger conflicts with neither readers
-- nor calls. Every wait for a lock ends after 0.1 s, so that nobody queues behind it.
CREATE OR REPLACE FUNCTION public.make_ledger_partition(month timestamptz, max_moved integer) RETURNS boolean
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
    -- Before any partition, as everybody does: the drop of a month has the ledger when it locks the
    -- default partition.
    LOCK TABLE ONLY public.ledger_entries IN SHARE UPDATE EXCLUSIVE MODE;
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
