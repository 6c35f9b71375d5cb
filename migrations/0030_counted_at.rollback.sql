DROP INDEX public.ledger_entries_counted_idx;
