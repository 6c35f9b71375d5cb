DROP TABLE public.ledger_entries;
DROP SCHEMA ledger_partitions;
DROP TABLE public.holds;
DROP TABLE public.limits;
