-- Tenants and their callers. A key is stored as the SHA-256 of 256 random bits, never as itself;
-- rotation keeps the row, so that limits and history stay with it.
-- depends:

CREATE TABLE public.organizations (
    id uuid NOT NULL,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    settings jsonb NOT NULL DEFAULT '{}',
    wrapped_data_key bytea,
    audit_sequence bigint NOT NULL DEFAULT 0,
    audit_head bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT organizations_pkey PRIMARY KEY (id),
    CONSTRAINT organizations_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT organizations_status CHECK (status IN ('active', 'suspended', 'deleted')),
    CONSTRAINT organizations_audit_head CHECK (octet_length(audit_head) = 32)
);

COMMENT ON COLUMN public.organizations.wrapped_data_key IS
    'The organization''s data key under the master key; deleting the organization nulls it, which shreds what it sealed.';
COMMENT ON COLUMN public.organizations.audit_head IS
    'Hash of the newest audit event; its row lock orders the chain.';

-- The operator is an organization of its own, so that what it does has an audit chain too.
INSERT INTO public.organizations (id, name)
VALUES ('00000000-0000-0000-0000-000000000000', 'operator');

CREATE TABLE public.api_keys (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    name text NOT NULL,
    role text NOT NULL,
    digest bytea NOT NULL,
    prefix text NOT NULL,
    settings jsonb NOT NULL DEFAULT '{}',
    allowed_models text[],
    allowed_endpoints text[],
    ip_allow_list cidr[],
    expires_at timestamptz,
    revoked_at timestamptz,
    previous_digest bytea,
    previous_until timestamptz,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT api_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT api_keys_role CHECK (role IN ('inference', 'admin', 'operator')),
    CONSTRAINT api_keys_digest_length CHECK (octet_length(digest) = 32),
    CONSTRAINT api_keys_previous_digest_length CHECK (octet_length(previous_digest) = 32),
    CONSTRAINT api_keys_previous_until CHECK ((previous_digest IS NULL) = (previous_until IS NULL))
);

CREATE INDEX api_keys_organization_id_idx ON public.api_keys (organization_id, id);
CREATE UNIQUE INDEX api_keys_previous_digest_idx ON public.api_keys (previous_digest)
    WHERE previous_digest IS NOT NULL;
