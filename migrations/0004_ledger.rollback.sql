DROP TABLE public.ledger_entries;
DROP SCHEMA ledger_partitions;
DROP FUNCTION public.make_ledger_partitions(integer);
DROP FUNCTION public.uuid7_floor(timestamptz);
DROP FUNCTION public.refuse_change();
DROP TABLE public.holds;
DROP TABLE public.limits;
