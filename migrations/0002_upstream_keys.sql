-- The operator's Venice keys, sealed. Shared when organization_id is null, else dedicated to one
-- organization. /billing/* refuses inference keys, hence the role.
-- depends: 0001_accounts

CREATE TABLE public.upstream_keys (
    id uuid NOT NULL,
    name text NOT NULL,
    role text NOT NULL DEFAULT 'inference',
    source text NOT NULL,
    organization_id uuid,
    sealed_key bytea,
    status text NOT NULL DEFAULT 'active',
    status_reason text,
    set_aside_until timestamptz,
    balance_usd_nanos bigint,
    balance_diem_nanos bigint,
    tier text,
    billing_cursor text,
    last_checked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT upstream_keys_pkey PRIMARY KEY (id),
    CONSTRAINT upstream_keys_name_key UNIQUE (name),
    CONSTRAINT upstream_keys_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT upstream_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT upstream_keys_role CHECK (role IN ('inference', 'admin')),
    CONSTRAINT upstream_keys_source CHECK (source IN ('environment', 'database')),
    CONSTRAINT upstream_keys_sealed_key CHECK ((source = 'database') = (sealed_key IS NOT NULL)),
    CONSTRAINT upstream_keys_status CHECK (status IN ('active', 'set_aside', 'disabled'))
);
