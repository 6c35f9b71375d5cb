-- List the months that have a partition, each by its start in UTC.
CREATE OR REPLACE FUNCTION public.ledger_months() RETURNS TABLE (month timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT to_date(named.month, 'YYYY_MM')::timestamp AT TIME ZONE 'UTC'
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL substring(c.relname::text FROM '^ledger_entries_(\d{4}_\d{2})$')
        AS named (month)
    WHERE i.inhparent = 'public.ledger_entries'::regclass
      AND named.month IS NOT NULL
$$;
