-- Change the hold of a moved call in its place, so that a settlement that waits for the row finds
-- it.
CREATE OR REPLACE FUNCTION public.move_hold(
    call record, moved_limit_ids uuid[], moved_limit_windows timestamptz[],
    moved_lease_until timestamptz
)
RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.holds h
    SET endpoint = call.endpoint,
        model = call.model,
        is_stream = call.is_stream,
        bound_nanos = call.bound_nanos,
        bound_tokens = call.bound_tokens,
        limit_ids = moved_limit_ids,
        limit_windows = moved_limit_windows,
        lease_until = moved_lease_until,
        requested_model = call.requested_model,
        price_version = call.price_version
    WHERE h.organization_id = call.organization_id
      AND h.id = call.id;
END
$$;
