-- Reports, exports and lists choose and order entries by when they were settled, which the database's
-- clock tells. Ids are of the clocks of many processes, so they do not bound what is read.
-- depends: 0029_attached_months

CREATE INDEX ledger_entries_counted_idx ON public.ledger_entries (organization_id, counted_at, id);
