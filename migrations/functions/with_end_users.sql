-- Add to calls the limits of their end users.
CREATE OR REPLACE FUNCTION public.with_end_users(INOUT calls public.asking_call[])
LANGUAGE plpgsql AS $$
DECLARE
    call public.asking_call;
BEGIN
    FOR n IN 1 .. cardinality(calls) LOOP
        call := calls[n];
        CONTINUE WHEN call.end_user IS NULL;
        call.limit_ids := call.limit_ids || ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = call.organization_id
              AND l.api_key_id IS NULL
              AND l.end_user = call.end_user
              AND l.template_id IS NULL
              AND l.deleted_at IS NULL
            UNION ALL
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = call.organization_id
              AND l.api_key_id = call.api_key_id
              AND l.end_user = call.end_user
              AND l.template_id IS NULL
              AND l.deleted_at IS NULL
        );
        calls[n] := call;
    END LOOP;
END
$$;
