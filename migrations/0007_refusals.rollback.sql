DROP INDEX public.ledger_entries_request_id_idx;
DROP TABLE derived.attempts;
DROP TABLE derived.refusals;
DROP SCHEMA derived;
