-- Return what API keys may do: 'admitted' where only limits can refuse a call, or why they may not.
-- Keys that do not exist are missing.
CREATE OR REPLACE FUNCTION public.standings_of_keys(
    key_ids uuid[], decided_at timestamptz,
    OUT ids uuid[], OUT organization_ids uuid[], OUT standings text[]
)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(k.id), array_agg(k.organization_id), array_agg(
        CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
             WHEN k.expires_at <= decided_at THEN 'expired_api_key'
             WHEN (
                 SELECT o.status FROM public.organizations o WHERE o.id = k.organization_id
             ) <> 'active' THEN 'organization_inactive'
             ELSE 'admitted' END
    )
    INTO ids, organization_ids, standings
    FROM public.api_keys k
    WHERE k.id = ANY (key_ids);
END
$$;
