-- Take the entries of a month of the ledger off the roll-ups, before the month is dropped.
--
-- Entries of the month that are not in them yet never come into them. The lock of the cursor keeps the
-- writer of the roll-ups out until the transaction ends.
CREATE OR REPLACE FUNCTION public.uncount_month(month timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    first_id CONSTANT uuid := public.uuid7_floor(month);
    end_id CONSTANT uuid := public.uuid7_floor(
        (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
    );
    rolled_up_to timestamptz;
    first_at timestamptz;
    last_at timestamptz;
BEGIN
    SELECT c.counted_to INTO rolled_up_to
    FROM derived.usage_cursor c
    FOR UPDATE;
    SELECT min(e.counted_at), max(e.counted_at) INTO first_at, last_at
    FROM public.ledger_entries e
    WHERE e.id >= first_id
      AND e.id < end_id
      AND e.counted_at < rolled_up_to;
    IF first_at IS NULL THEN
        RETURN;
    END IF;
    PERFORM public.count_usage(
        -1, first_at, least(rolled_up_to, last_at + interval '1 microsecond'), first_id, end_id
    );
    DELETE FROM derived.usage u
    WHERE u.start_at >= date_trunc('day', first_at, 'UTC')
      AND u.start_at <= last_at
      AND u.entries = 0;
END
$$;
