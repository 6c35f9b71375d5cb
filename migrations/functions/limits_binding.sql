-- Find the limits that bind a call of any model; of limits for each end user, the templates.
--
-- There is a branch for each key of the index, since an OR would read the limits of all API keys.
CREATE OR REPLACE FUNCTION public.limits_binding(
    call_organization_id uuid, call_api_key_id uuid, call_end_user bytea
)
RETURNS TABLE (id uuid, scope text)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY
    SELECT l.id, l.scope
    FROM public.limits l
    WHERE l.organization_id = call_organization_id
      AND l.api_key_id IS NULL
      AND l.end_user IS NULL
      AND l.template_id IS NULL
      AND l.deleted_at IS NULL
    UNION ALL
    SELECT l.id, l.scope
    FROM public.limits l
    WHERE l.organization_id = call_organization_id
      AND l.api_key_id = call_api_key_id
      AND l.end_user IS NULL
      AND l.template_id IS NULL
      AND l.deleted_at IS NULL
    UNION ALL
    SELECT l.id, l.scope
    FROM public.limits l
    WHERE l.organization_id = call_organization_id
      AND l.api_key_id IS NULL
      AND l.end_user = call_end_user
      AND l.template_id IS NULL
      AND l.deleted_at IS NULL
    UNION ALL
    SELECT l.id, l.scope
    FROM public.limits l
    WHERE l.organization_id = call_organization_id
      AND l.api_key_id = call_api_key_id
      AND l.end_user = call_end_user
      AND l.template_id IS NULL
      AND l.deleted_at IS NULL;
END
$$;
