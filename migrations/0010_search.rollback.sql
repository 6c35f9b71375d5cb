DROP INDEX public.ledger_entries_newest_idx;
