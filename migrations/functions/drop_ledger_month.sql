-- Drop a frozen month, and add what its entries counted to limits whose window still runs.
--
-- Returns false when every attempt met a session that reads the ledger. Its caller, who has taken
-- the month off the roll-ups before, then has to roll back.
--
-- The drop needs the ledger exclusively, and every session that comes later waits behind it. So
-- each attempt waits for at most 0.1 s, then lets the others pass. It locks in the order of
-- everybody: the ledger, then partitions (a generic plan locks all of them), then limits. In
-- another order the drop and a call would wait for each other at every attempt. DROP TABLE locks
-- the default partition too. A session that reads the month by its name does not lock the ledger,
-- so the drop would wait for it while it has the ledger: such an attempt ends before it locks
-- anything.
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
            IF public.is_month_read(name) THEN
                RAISE lock_not_available;
            END IF;
            PERFORM set_config('lock_timeout', '100ms', true);
            LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', '50ms', true);
            EXECUTE format(
                'LOCK TABLE ledger_partitions.%I, ledger_partitions.ledger_entries_default'
                ' IN ACCESS EXCLUSIVE MODE',
                name
            );
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
