-- The newest entries of all organizations.
-- depends: 0007_refusals

-- Lists of all organizations read the newest entries in order. Of 200 organizations they would read
-- each one's newest otherwise, and drop most of them: 114 ms instead of 7 for a page of 100.
--
-- An entry takes 1.1 µs, 83 bytes of WAL and 41 bytes of disk more. It is made with the ledger locked
-- against calls, 2 s for each million entries.
--
-- It is an index of an expression, so that it changes the plan of no other statement. PostgreSQL would
-- rather read a plain one for a large organization, and all others' entries with it.
CREATE INDEX ledger_entries_newest_idx
    ON public.ledger_entries ((counted_at AT TIME ZONE 'UTC'), id);
