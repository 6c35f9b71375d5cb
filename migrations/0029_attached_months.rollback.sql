DROP FUNCTION public.make_ledger_partition(timestamptz, integer);

-- As 0004 made it.
CREATE OR REPLACE FUNCTION public.make_ledger_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    month timestamptz;
    name text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('rialto.ledger_partitions'));
    FOR ahead IN 0 .. months_ahead LOOP
        month := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))
            AT TIME ZONE 'UTC';
        name := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
        IF to_regclass('ledger_partitions.' || name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE ledger_partitions.%I PARTITION OF public.ledger_entries'
                ' FOR VALUES FROM (%L) TO (%L)',
                name,
                public.uuid7_floor(month),
                public.uuid7_floor(
                    (month AT TIME ZONE 'UTC' + make_interval(months => 1)) AT TIME ZONE 'UTC'
                )
            );
            EXECUTE format(
                'CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_partitions.%I'
                ' FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()',
                name
            );
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

-- As 0012 made it.
CREATE OR REPLACE FUNCTION public.drop_ledger_month(
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
