-- Organizations, their API keys, and the audit chain of what was changed.
--
-- A key is stored as the SHA-256 of 256 random bits, never as itself. Rotation keeps the row, so that
-- limits and history stay with the key.
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
    set_by text NOT NULL DEFAULT 'operator',
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT api_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT api_keys_role CHECK (role IN ('inference', 'admin', 'operator')),
    CONSTRAINT api_keys_digest_length CHECK (octet_length(digest) = 32),
    CONSTRAINT api_keys_previous_digest_length CHECK (octet_length(previous_digest) = 32),
    CONSTRAINT api_keys_previous_until CHECK ((previous_digest IS NULL) = (previous_until IS NULL)),
    CONSTRAINT api_keys_set_by CHECK (set_by IN ('operator', 'administrator'))
);

CREATE INDEX api_keys_organization_id_idx ON public.api_keys (organization_id, id);
CREATE UNIQUE INDEX api_keys_previous_digest_idx ON public.api_keys (previous_digest)
    WHERE previous_digest IS NOT NULL;

COMMENT ON COLUMN public.api_keys.set_by IS
    'Who last set what the key may use: the operator, or an administrator of the organization.';

-- The audit chain and the ledger are insert-only. A trigger refuses the rest, since the service owns
-- its tables and no privilege would stop it.
CREATE FUNCTION public.refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert-only: write a new event that amends the old one', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'insert_only';
END
$$;

-- Each organization has its own sequence and hash chain.
CREATE TABLE public.audit_events (
    organization_id uuid NOT NULL,
    sequence bigint NOT NULL,
    id uuid NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    request_id text,
    created_at timestamptz NOT NULL,
    previous_hash bytea,
    hash bytea NOT NULL,
    CONSTRAINT audit_events_pkey PRIMARY KEY (organization_id, sequence),
    CONSTRAINT audit_events_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT audit_events_sequence CHECK (sequence > 0),
    CONSTRAINT audit_events_chain CHECK ((sequence = 1) = (previous_hash IS NULL)),
    CONSTRAINT audit_events_hash_length CHECK (octet_length(hash) = 32)
);

CREATE TRIGGER audit_events_insert_only BEFORE UPDATE OR DELETE ON public.audit_events
    FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON public.audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

-- Refusals by a limit name the implausible cost that used it up, and find it by its organization.
CREATE INDEX audit_events_implausible_idx
    ON public.audit_events ((detail ->> 'organization_id'), sequence)
    WHERE action = 'ledger.implausible_cost';
