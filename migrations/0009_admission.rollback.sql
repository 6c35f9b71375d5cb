DROP FUNCTION public.settle(jsonb);
DROP FUNCTION public.admit(jsonb, uuid, interval);
DROP FUNCTION public.write_limits(
    uuid[], uuid[], bigint[], bigint[], integer[], timestamptz[], bigint[], boolean[]
);
DROP FUNCTION public.limits_as_of(uuid[], timestamptz);
DROP FUNCTION public.limit_ring(bigint[], timestamptz, integer, timestamptz);
DROP FUNCTION public.limit_resets_at(text, timestamptz);
DROP FUNCTION public.limit_window(text, timestamptz);
DROP FUNCTION public.limit_bucket_s(text, text);
ALTER TABLE public.ledger_entries DROP COLUMN tokens;
DROP INDEX public.limits_organization_id_idx;
