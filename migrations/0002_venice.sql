-- What the service knows of Venice: the operator's keys, sealed, and the models.
-- depends: 0001_organizations

-- A key is shared when organization_id is null, else dedicated to one organization. It has a role
-- because /billing/* refuses inference keys.
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
    last_check text,
    condition text,
    condition_at timestamptz,
    CONSTRAINT upstream_keys_pkey PRIMARY KEY (id),
    CONSTRAINT upstream_keys_name_key UNIQUE (name),
    CONSTRAINT upstream_keys_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT upstream_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT upstream_keys_role CHECK (role IN ('inference', 'admin')),
    CONSTRAINT upstream_keys_source CHECK (source IN ('environment', 'database')),
    CONSTRAINT upstream_keys_sealed_key CHECK ((source = 'database') = (sealed_key IS NOT NULL)),
    CONSTRAINT upstream_keys_status CHECK (status IN ('active', 'set_aside', 'disabled')),
    CONSTRAINT upstream_keys_last_check CHECK (
        last_check IN ('well', 'invalid', 'spent', 'forbidden', 'unreachable', 'failed')
    ),
    CONSTRAINT upstream_keys_condition CHECK (
        condition IN ('well', 'invalid', 'spent', 'forbidden')
    )
);

COMMENT ON COLUMN public.upstream_keys.condition IS
    'What Venice itself last reported of the key; a check that did not reach Venice leaves it.';

-- Every name that a caller may use, in versions, so that a ledger entry can state the prices that its
-- bound was computed from. The rows of Venice's models are a copy of its list that can be served:
-- each as Venice sent it, in Venice's order, with its other names and when it went. Aliases are for
-- all organizations (null) or for one.
CREATE TABLE public.models (
    id uuid NOT NULL,
    organization_id uuid,
    name text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    is_current boolean NOT NULL DEFAULT true,
    kind text NOT NULL,
    type text,
    capabilities jsonb NOT NULL DEFAULT '{}',
    prices jsonb,
    context_tokens integer,
    max_output_tokens integer,
    deprecation jsonb,
    targets text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    listing text,
    position integer,
    also_named text[] NOT NULL DEFAULT '{}',
    retired_at timestamptz,
    set_by text NOT NULL DEFAULT 'operator',
    CONSTRAINT models_pkey PRIMARY KEY (id),
    CONSTRAINT models_version_key UNIQUE NULLS NOT DISTINCT (organization_id, name, version),
    CONSTRAINT models_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT models_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT models_kind CHECK (kind IN ('venice', 'alias')),
    CONSTRAINT models_targets CHECK ((kind = 'alias') = (coalesce(cardinality(targets), 0) > 0)),
    CONSTRAINT models_retired CHECK (retired_at IS NULL OR (kind = 'venice' AND NOT is_current)),
    CONSTRAINT models_set_by CHECK (set_by IN ('operator', 'administrator'))
);

CREATE UNIQUE INDEX models_current_idx ON public.models (organization_id, name)
    NULLS NOT DISTINCT WHERE is_current;

COMMENT ON COLUMN public.models.set_by IS
    'Who set an alias: the operator, or an administrator of the organization that has it.';
