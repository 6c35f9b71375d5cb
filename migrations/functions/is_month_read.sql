-- Return whether another session has locked a month of the ledger but not the ledger itself, as one
-- that reads the month by its name does.
CREATE OR REPLACE FUNCTION public.is_month_read(partition_name text)
RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT
        FROM pg_locks month
        WHERE month.relation = ('ledger_partitions.' || partition_name)::regclass
          AND month.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND month.pid <> pg_backend_pid()
          AND NOT EXISTS (
              SELECT
              FROM pg_locks ledger
              WHERE ledger.relation = 'public.ledger_entries'::regclass
                AND ledger.database = month.database
                AND ledger.pid = month.pid
          )
    )
$$;
