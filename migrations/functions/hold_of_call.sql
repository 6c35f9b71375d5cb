-- Return what the hold of a call takes, and nulls where there is none.
CREATE OR REPLACE FUNCTION public.hold_of_call(
    call_organization_id uuid, call_id uuid,
    OUT id uuid, OUT bound_nanos bigint, OUT bound_tokens bigint, OUT limit_ids uuid[],
    OUT limit_windows timestamptz[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT h.id, h.bound_nanos, h.bound_tokens, h.limit_ids, h.limit_windows
    INTO id, bound_nanos, bound_tokens, limit_ids, limit_windows
    FROM public.holds h
    WHERE h.organization_id = call_organization_id
      AND h.id = call_id;
END
$$;
