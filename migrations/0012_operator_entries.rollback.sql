DROP FUNCTION public.drop_ledger_month(timestamptz, uuid[], uuid[], timestamptz[], bigint[], integer);
DROP FUNCTION public.freeze_ledger_month(timestamptz);
DROP FUNCTION public.ledger_months();
DROP FUNCTION public.repair_limits(uuid, uuid[], text[], timestamptz[], bigint[]);
DROP FUNCTION public.credit(uuid, uuid, uuid, bigint, text);
