-- Keep entries from being inserted into a month until the transaction ends. Reads go on.
CREATE OR REPLACE FUNCTION public.freeze_ledger_month(month timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'LOCK TABLE ledger_partitions.%I IN SHARE MODE',
        'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')
    );
END
$$;
