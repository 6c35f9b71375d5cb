-- What became of the jobs that Venice has queued is asked for until it is known, whether or not the
-- caller asks: a job that fails may be refunded. They are found by when they were booked.
-- depends: 0015_moved_holds

CREATE INDEX ledger_entries_queued_idx ON public.ledger_entries (counted_at)
    WHERE endpoint LIKE '%/queue';
