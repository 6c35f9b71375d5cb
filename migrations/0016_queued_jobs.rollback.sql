DROP INDEX public.ledger_entries_queued_idx;
