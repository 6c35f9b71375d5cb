-- Derive the id of the counter that a template keeps for one end user.
--
-- Calls without an end user share the counter of ''. Those that found no room for a counter of
-- their own share the counter of '\x00'. No digest of a name is that short.
CREATE OR REPLACE FUNCTION public.limit_child_id(template_id uuid, end_user bytea) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(uuid_send(template_id) || end_user), 'hex'), 32)::uuid
$$;
