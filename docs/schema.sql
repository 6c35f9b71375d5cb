-- The schema after every migration, to be read. Made from migrations/ by scripts/docs.sh; do not
-- edit. Left out: the partitions of ledger_entries and the bookkeeping of the migrations.

CREATE SCHEMA derived;

CREATE SCHEMA ledger_partitions;

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
    CONSTRAINT organizations_audit_head CHECK (octet_length(audit_head) = 32),
    CONSTRAINT organizations_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT organizations_status CHECK (status IN ('active', 'suspended', 'deleted'))
);
COMMENT ON COLUMN public.organizations.wrapped_data_key IS 'The organization''s data key under the master key; deleting the organization nulls it, which shreds what it sealed.';
COMMENT ON COLUMN public.organizations.audit_head IS 'Hash of the newest audit event; its row lock orders the chain.';

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
    CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT api_keys_digest_length CHECK (octet_length(digest) = 32),
    CONSTRAINT api_keys_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT api_keys_previous_digest_length CHECK (octet_length(previous_digest) = 32),
    CONSTRAINT api_keys_previous_until CHECK ((previous_digest IS NULL) = (previous_until IS NULL)),
    CONSTRAINT api_keys_role CHECK (role IN ('inference', 'admin', 'operator')),
    CONSTRAINT api_keys_set_by CHECK (set_by IN ('operator', 'administrator'))
);
CREATE INDEX api_keys_organization_id_idx ON public.api_keys (organization_id, id);
CREATE UNIQUE INDEX api_keys_previous_digest_idx ON public.api_keys (previous_digest) WHERE (previous_digest IS NOT NULL);
COMMENT ON COLUMN public.api_keys.set_by IS 'Who last set what the key may use: the operator, or an administrator of the organization.';

CREATE TABLE public.limits (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    scope text NOT NULL,
    api_key_id uuid,
    end_user bytea,
    template_id uuid,
    model text,
    unit text NOT NULL,
    period text,
    ceiling bigint NOT NULL,
    used bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    carried bigint NOT NULL DEFAULT 0,
    window_start timestamptz,
    buckets bigint[],
    bucket_at timestamptz,
    raised_to bigint,
    raised_until timestamptz,
    alert_percents smallint[] NOT NULL DEFAULT '{50,80,100}',
    alerted_percent smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    children integer NOT NULL DEFAULT 0,
    set_by text NOT NULL DEFAULT 'operator',
    CONSTRAINT limits_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT limits_api_key_id_fkey FOREIGN KEY (api_key_id) REFERENCES public.api_keys(id),
    CONSTRAINT limits_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT limits_held CHECK (held >= 0)
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=100, autovacuum_vacuum_cost_delay=0);
CREATE INDEX limits_applying_idx ON public.limits (organization_id, api_key_id, end_user) WHERE ((template_id IS NULL) AND (deleted_at IS NULL));
CREATE INDEX limits_id_idx ON public.limits (id);
CREATE INDEX limits_template_id_idx ON public.limits (template_id) WHERE (template_id IS NOT NULL);
CREATE TRIGGER limits_check AFTER INSERT OR UPDATE OF scope, api_key_id, end_user, template_id, unit, period, ceiling, raised_to, raised_until, set_by ON public.limits FOR EACH ROW EXECUTE FUNCTION public.check_limit();
COMMENT ON COLUMN public.limits.children IS 'How many end users have a counter of this template; the shared ones do not count.';
COMMENT ON COLUMN public.limits.set_by IS 'Who set the ceiling last: the operator, or an administrator of the organization.';

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
    CONSTRAINT upstream_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT upstream_keys_condition CHECK (condition IN ('well', 'invalid', 'spent', 'forbidden')),
    CONSTRAINT upstream_keys_last_check CHECK (last_check IN ('well', 'invalid', 'spent', 'forbidden', 'unreachable', 'failed')),
    CONSTRAINT upstream_keys_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT upstream_keys_role CHECK (role IN ('inference', 'admin')),
    CONSTRAINT upstream_keys_sealed_key CHECK ((source = 'database') = (sealed_key IS NOT NULL)),
    CONSTRAINT upstream_keys_source CHECK (source IN ('environment', 'database')),
    CONSTRAINT upstream_keys_status CHECK (status IN ('active', 'set_aside', 'disabled'))
);
COMMENT ON COLUMN public.upstream_keys.condition IS 'What Venice itself last reported of the key; a check that did not reach Venice leaves it.';

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
    "position" integer,
    also_named text[] NOT NULL DEFAULT '{}',
    retired_at timestamptz,
    set_by text NOT NULL DEFAULT 'operator',
    CONSTRAINT models_pkey PRIMARY KEY (id),
    CONSTRAINT models_version_key UNIQUE NULLS NOT DISTINCT (organization_id, name, version),
    CONSTRAINT models_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT models_kind CHECK (kind IN ('venice', 'alias')),
    CONSTRAINT models_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT models_retired CHECK (retired_at IS NULL OR kind = 'venice' AND NOT is_current),
    CONSTRAINT models_set_by CHECK (set_by IN ('operator', 'administrator')),
    CONSTRAINT models_targets CHECK ((kind = 'alias') = (COALESCE(cardinality(targets), 0) > 0))
);
CREATE UNIQUE INDEX models_current_idx ON public.models (organization_id, name) NULLS NOT DISTINCT WHERE is_current;
COMMENT ON COLUMN public.models.set_by IS 'Who set an alias: the operator, or an administrator of the organization that has it.';

CREATE TABLE public.holds (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    end_user bytea,
    request_id text NOT NULL,
    endpoint text NOT NULL,
    model text NOT NULL,
    is_stream boolean NOT NULL,
    bound_nanos bigint,
    bound_tokens bigint,
    limit_ids uuid[] NOT NULL DEFAULT '{}',
    limit_windows timestamptz[] NOT NULL DEFAULT '{}',
    process_id uuid NOT NULL,
    lease_until timestamptz NOT NULL,
    price_version integer,
    upstream_key_id uuid,
    upstream_request_id text,
    tags jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    requested_model text,
    CONSTRAINT holds_pkey PRIMARY KEY (organization_id, id)
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=100, autovacuum_vacuum_cost_delay=0);
COMMENT ON COLUMN public.holds.requested_model IS 'The name by which the caller asked for the model; null where that is the model''s own.';

CREATE TABLE public.ledger_entries (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL,
    amends_id uuid,
    api_key_id uuid,
    end_user bytea,
    request_id text,
    endpoint text,
    model text,
    requested_model text,
    is_stream boolean,
    outcome text,
    status smallint,
    requests integer NOT NULL DEFAULT 0,
    input_tokens bigint,
    cached_input_tokens bigint,
    output_tokens bigint,
    cost_nanos bigint,
    cost_source text NOT NULL,
    bound_nanos bigint,
    bound_tokens bigint,
    price_version integer,
    limit_ids uuid[] NOT NULL DEFAULT '{}',
    limit_windows timestamptz[] NOT NULL DEFAULT '{}',
    counted_at timestamptz,
    upstream_key_id uuid,
    upstream_request_id text,
    first_byte_ms integer,
    duration_ms integer,
    tags jsonb,
    note text,
    created_at timestamptz NOT NULL DEFAULT now(),
    tokens bigint NOT NULL DEFAULT 0,
    CONSTRAINT ledger_entries_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT ledger_entries_cost_known CHECK ((cost_source = 'unknown') = (cost_nanos IS NULL))
) PARTITION BY RANGE (id);
CREATE INDEX ledger_entries_amends_id_idx ON ONLY public.ledger_entries (organization_id, amends_id) WHERE (amends_id IS NOT NULL);
CREATE INDEX ledger_entries_counted_idx ON ONLY public.ledger_entries (organization_id, counted_at, id);
CREATE INDEX ledger_entries_job_idx ON ONLY public.ledger_entries (organization_id, upstream_request_id) WHERE (endpoint ~~ '%/queue');
CREATE INDEX ledger_entries_newest_idx ON ONLY public.ledger_entries ((counted_at AT TIME ZONE 'UTC'), id);
CREATE INDEX ledger_entries_queued_idx ON ONLY public.ledger_entries (counted_at) WHERE (endpoint ~~ '%/queue');
CREATE INDEX ledger_entries_request_id_idx ON ONLY public.ledger_entries (request_id, organization_id);
CREATE TRIGGER ledger_entries_insert_only BEFORE DELETE OR UPDATE ON public.ledger_entries FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON public.ledger_entries FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TABLE public.idempotency_keys (
    organization_id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    id uuid NOT NULL,
    request_digest bytea NOT NULL,
    state text NOT NULL,
    lease_until timestamptz,
    call_id uuid,
    status smallint,
    headers jsonb,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (organization_id, api_key_id, route, key),
    CONSTRAINT idempotency_keys_done CHECK (state <> 'done' OR status IS NOT NULL),
    CONSTRAINT idempotency_keys_key_length CHECK (char_length(key) >= 1 AND char_length(key) <= 255),
    CONSTRAINT idempotency_keys_request_digest_length CHECK (octet_length(request_digest) = 32),
    CONSTRAINT idempotency_keys_state CHECK (state IN ('running', 'done'))
);
CREATE INDEX idempotency_keys_expires_at_idx ON public.idempotency_keys (expires_at);

CREATE TABLE public.generations (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    kind text NOT NULL,
    parent_id uuid,
    custom_id text,
    previous_id uuid,
    call_id uuid,
    status text NOT NULL,
    process_id uuid,
    lease_until timestamptz,
    next_poll_at timestamptz,
    upstream_key_id uuid,
    upstream_reference text,
    metadata jsonb NOT NULL DEFAULT '{}',
    error jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CONSTRAINT generations_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT generations_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT generations_kind CHECK (kind IN ('response', 'image', 'video', 'audio', 'batch', 'file')),
    CONSTRAINT generations_status CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete', 'expired'))
);
CREATE INDEX generations_expires_at_idx ON public.generations (expires_at) WHERE (expires_at IS NOT NULL);
CREATE INDEX generations_next_poll_at_idx ON public.generations (next_poll_at) WHERE (status IN ('queued', 'in_progress'));
CREATE INDEX generations_parent_id_idx ON public.generations (organization_id, parent_id) WHERE (parent_id IS NOT NULL);

CREATE TABLE public.conversations (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CONSTRAINT conversations_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT conversations_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id)
);
CREATE INDEX conversations_expires_at_idx ON public.conversations (expires_at) WHERE (expires_at IS NOT NULL);

CREATE TABLE public.items (
    organization_id uuid NOT NULL,
    parent_id uuid NOT NULL,
    "position" bigint NOT NULL,
    kind text NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT items_pkey PRIMARY KEY (organization_id, parent_id, "position"),
    CONSTRAINT items_kind CHECK (kind IN ('item', 'input', 'output', 'segment', 'body', 'line')),
    CONSTRAINT items_position CHECK ("position" >= 0)
);

CREATE TABLE public.webhook_endpoints (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    url text NOT NULL,
    events text[] NOT NULL,
    status text NOT NULL DEFAULT 'active',
    sealed_secret bytea NOT NULL,
    previous_sealed_secret bytea,
    previous_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_endpoints_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT webhook_endpoints_previous_until CHECK ((previous_sealed_secret IS NULL) = (previous_until IS NULL)),
    CONSTRAINT webhook_endpoints_status CHECK (status IN ('active', 'disabled'))
);
CREATE INDEX webhook_endpoints_organization_id_idx ON public.webhook_endpoints (organization_id);

CREATE TABLE public.webhook_deliveries (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    event text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    delivered_at timestamptz,
    response_status smallint,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT webhook_deliveries_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES public.webhook_endpoints(id)
);
CREATE INDEX webhook_deliveries_next_attempt_at_idx ON public.webhook_deliveries (next_attempt_at) WHERE (next_attempt_at IS NOT NULL);

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
    CONSTRAINT audit_events_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT audit_events_chain CHECK ((sequence = 1) = (previous_hash IS NULL)),
    CONSTRAINT audit_events_hash_length CHECK (octet_length(hash) = 32),
    CONSTRAINT audit_events_sequence CHECK (sequence > 0)
);
CREATE INDEX audit_events_implausible_idx ON public.audit_events (((detail ->> 'organization_id')), sequence) WHERE (action = 'ledger.implausible_cost');
CREATE TRIGGER audit_events_insert_only BEFORE DELETE OR UPDATE ON public.audit_events FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON public.audit_events FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TABLE derived.refusals (
    id uuid NOT NULL,
    refused_at timestamptz NOT NULL,
    request_id text NOT NULL,
    method text NOT NULL,
    route text NOT NULL,
    status smallint NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    param text,
    organization_id uuid,
    api_key_id uuid,
    key_prefix text,
    end_user bytea,
    endpoint text,
    model text,
    requested_model text,
    is_stream boolean,
    limit_state jsonb,
    retry_after_s integer,
    repeats integer NOT NULL DEFAULT 0,
    CONSTRAINT refusals_pkey PRIMARY KEY (id) INCLUDE (code, status, repeats, refused_at)
);
CREATE INDEX refusals_api_key_id_idx ON derived.refusals (api_key_id, id);
CREATE INDEX refusals_code_idx ON derived.refusals (code, id);
CREATE INDEX refusals_organization_id_idx ON derived.refusals (organization_id, id);
CREATE INDEX refusals_request_id_idx ON derived.refusals (request_id);
COMMENT ON COLUMN derived.refusals.organization_id IS 'Null where no key of an organization was shown.';
COMMENT ON COLUMN derived.refusals.limit_state IS 'The limit that refused, with the numbers that the caller got.';
COMMENT ON COLUMN derived.refusals.repeats IS 'How many more refusals of the same key or address and code came within the same second and have no row.';

CREATE TABLE derived.attempts (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    entry_id uuid NOT NULL,
    number smallint NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    model text NOT NULL,
    upstream_key_id uuid,
    status smallint,
    code text NOT NULL,
    CONSTRAINT attempts_pkey PRIMARY KEY (id)
);
CREATE INDEX attempts_entry_id_idx ON derived.attempts (entry_id);
CREATE INDEX attempts_organization_id_idx ON derived.attempts (organization_id, id);

CREATE TABLE derived.usage (
    cut text NOT NULL,
    start_at timestamptz NOT NULL,
    organization_id uuid,
    api_key_id uuid,
    model text,
    endpoint text,
    outcome text,
    entries bigint NOT NULL,
    calls bigint NOT NULL,
    failures bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost_nanos bigint NOT NULL,
    unknown_costs bigint NOT NULL,
    first_bytes numeric NOT NULL,
    durations numeric NOT NULL
) PARTITION BY LIST (cut);
CREATE TABLE derived.usage_by_hour PARTITION OF derived.usage FOR VALUES IN ('hour');
CREATE TABLE derived.usage_by_day PARTITION OF derived.usage FOR VALUES IN ('day');
CREATE TABLE derived.key_usage_by_hour PARTITION OF derived.usage FOR VALUES IN ('key_hour');
CREATE TABLE derived.key_usage_by_day PARTITION OF derived.usage FOR VALUES IN ('key_day');
CREATE TABLE derived.model_usage_by_hour PARTITION OF derived.usage FOR VALUES IN ('model_hour');
CREATE TABLE derived.model_usage_by_day PARTITION OF derived.usage FOR VALUES IN ('model_day');
CREATE UNIQUE INDEX usage_key ON ONLY derived.usage (cut, organization_id, start_at, api_key_id, model, endpoint, outcome) NULLS NOT DISTINCT;
CREATE INDEX usage_start_at_idx ON ONLY derived.usage (start_at);

CREATE TABLE derived.usage_cursor (
    is_only boolean NOT NULL DEFAULT true,
    counted_to timestamptz,
    next_to timestamptz,
    waits_for text[] NOT NULL DEFAULT '{}',
    CONSTRAINT usage_cursor_pkey PRIMARY KEY (is_only),
    CONSTRAINT usage_cursor_is_only CHECK (is_only)
);

CREATE VIEW derived.entries AS
 SELECT organization_id,
    id,
    counted_at,
    api_key_id,
    end_user,
    model,
    endpoint,
    outcome,
    tags,
    1::bigint AS entries,
    requests::bigint AS calls,
        CASE
            WHEN outcome <> ALL (ARRAY['ok', 'client_closed', 'not_sent']) THEN requests::bigint
            ELSE 0::bigint
        END AS failures,
    COALESCE(input_tokens, 0::bigint) AS input_tokens,
    COALESCE(cached_input_tokens, 0::bigint) AS cached_input_tokens,
    COALESCE(output_tokens, 0::bigint) AS output_tokens,
    COALESCE(cost_nanos, 0::bigint) AS cost_nanos,
    (cost_nanos IS NULL)::integer::bigint AS unknown_costs,
    COALESCE(('{1,1000000000000,1000000000000000000000000,1000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000}')[1 + width_bucket(first_byte_ms, '{50,100,200,300,500,750,1000,1500,2000,3000,5000,10000,20000,30000,60000,120000}')], 0::numeric) AS first_bytes,
    COALESCE(('{1,1000000000000,1000000000000000000000000,1000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000}')[1 + width_bucket(duration_ms, '{50,100,200,300,500,750,1000,1500,2000,3000,5000,10000,20000,30000,60000,120000}')], 0::numeric) AS durations
   FROM public.ledger_entries e;

CREATE TYPE public.applying_limits AS (
    ids uuid[],
    template_ids uuid[],
    template_users bytea[],
    left_ids uuid[]
);

CREATE TYPE public.asking_call AS (
    organization_id uuid,
    id uuid,
    api_key_id uuid,
    end_user bytea,
    request_id text,
    endpoint text,
    model text,
    is_stream boolean,
    bound_nanos bigint,
    bound_tokens bigint,
    least_nanos bigint,
    least_tokens bigint,
    requested_model text,
    price_version integer,
    tags jsonb,
    is_moved boolean,
    caller text,
    standing text,
    limit_ids uuid[],
    template_ids uuid[]
);

CREATE TYPE public.batch_result AS (
    id uuid,
    kind text,
    cost_nanos bigint,
    bound_nanos bigint,
    number integer,
    verdict text,
    limit_id uuid,
    scope text,
    model text,
    unit text,
    period text,
    used bigint,
    held bigint,
    ceiling bigint,
    needed bigint,
    resets_at timestamptz,
    retry_after_s integer,
    granted_nanos bigint,
    granted_tokens bigint,
    requests_ceiling bigint,
    requests_left bigint,
    requests_reset_s integer,
    tokens_ceiling bigint,
    tokens_left bigint,
    tokens_reset_s integer
);

CREATE TYPE public.ended_call AS (
    correction_id uuid,
    model text,
    outcome text,
    status smallint,
    input_tokens bigint,
    cached_input_tokens bigint,
    output_tokens bigint,
    cost_nanos bigint,
    cost_source text,
    upstream_key_id uuid,
    upstream_request_id text,
    first_byte_ms integer,
    duration_ms integer
);

CREATE TYPE public.entry_row AS (
    organization_id uuid,
    id uuid,
    kind text,
    amends_id uuid,
    api_key_id uuid,
    end_user bytea,
    request_id text,
    endpoint text,
    model text,
    requested_model text,
    is_stream boolean,
    outcome text,
    status smallint,
    requests integer,
    input_tokens bigint,
    cached_input_tokens bigint,
    output_tokens bigint,
    cost_nanos bigint,
    cost_source text,
    bound_nanos bigint,
    bound_tokens bigint,
    price_version integer,
    limit_ids uuid[],
    limit_windows timestamptz[],
    upstream_key_id uuid,
    upstream_request_id text,
    first_byte_ms integer,
    duration_ms integer,
    tags jsonb,
    tokens bigint
);

CREATE TYPE public.hold_row AS (
    organization_id uuid,
    id uuid,
    api_key_id uuid,
    end_user bytea,
    request_id text,
    endpoint text,
    model text,
    is_stream boolean,
    bound_nanos bigint,
    bound_tokens bigint,
    limit_ids uuid[],
    limit_windows timestamptz[],
    price_version integer,
    tags jsonb,
    requested_model text
);

CREATE TYPE public.limit_row AS (
    organization_id uuid,
    id uuid,
    template_id uuid,
    scope text,
    model text,
    unit text,
    period text,
    ceiling bigint,
    raised_to bigint,
    raised_until timestamptz,
    used bigint,
    held bigint,
    window_start timestamptz,
    buckets bigint[],
    bucket_at timestamptz,
    alert_percents smallint[],
    alerted_percent smallint
);

CREATE TYPE public.limit_state AS (
    organization_id uuid,
    id uuid,
    template_id uuid,
    scope text,
    api_key_id uuid,
    end_user bytea,
    model text,
    unit text,
    period text,
    ceiling bigint,
    used bigint,
    held bigint,
    bucket_s integer,
    window_at timestamptz,
    resets_at timestamptz,
    ring bigint[],
    alert_at bigint,
    is_changed boolean
);

CREATE TYPE public.locked_limit AS (
    id uuid,
    template_id uuid,
    scope text,
    model text,
    unit text,
    period text,
    ceiling bigint,
    bucket_s integer,
    window_at timestamptz,
    ring bigint[],
    alert_percents smallint[],
    alerted_percent smallint,
    is_rolled boolean,
    is_changed boolean
);

CREATE TYPE public.settled_holds AS (
    organization_ids uuid[],
    ids uuid[],
    seen_ids uuid[],
    interrupted_ids uuid[],
    limit_ids uuid[]
);

CREATE TYPE public.written_limit AS (
    id uuid,
    used bigint,
    held bigint,
    is_rolled boolean,
    window_start timestamptz,
    buckets bigint[],
    bucket_at timestamptz
);

CREATE OR REPLACE FUNCTION public.affordable_v2(limits public.locked_limit[], used bigint[], held bigint[], places integer[], least_nanos bigint, least_tokens bigint, INOUT nanos bigint, INOUT tokens bigint)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    place integer;
    remaining bigint;
BEGIN
    FOREACH place IN ARRAY places LOOP
        remaining := limits[place].ceiling - used[place] - held[place];
        IF limits[place].unit = 'usd' AND nanos IS NOT NULL THEN
            nanos := least(nanos, greatest(remaining, least_nanos));
        ELSIF limits[place].unit = 'tokens' THEN
            tokens := least(tokens, greatest(remaining, least_tokens));
        END IF;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.alert_at(unit text, ceiling bigint, alert_percents smallint[], alerted_percent smallint)
 RETURNS bigint
 LANGUAGE plpgsql
 IMMUTABLE
AS $function$
DECLARE
    percent smallint;
    next_percent smallint;
BEGIN
    IF unit <> 'usd' OR ceiling = 0 THEN
        RETURN NULL;
    END IF;
    FOREACH percent IN ARRAY alert_percents LOOP
        IF percent > alerted_percent THEN
            next_percent := least(next_percent, percent);
        END IF;
    END LOOP;
    -- Rounded up, and nothing on the way exceeds the ceiling.
    RETURN ceiling / 100 * next_percent + (ceiling % 100 * next_percent + 99) / 100;
END
$function$;

CREATE OR REPLACE FUNCTION public.amount_of(unit text, nanos bigint, tokens bigint, calls integer)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE
AS $function$
    SELECT CASE unit WHEN 'usd' THEN nanos WHEN 'tokens' THEN tokens ELSE calls END
$function$;

CREATE OR REPLACE FUNCTION public.check_limit()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
DECLARE
    broken text := CASE
        WHEN NEW.scope NOT IN ('organization', 'api_key', 'end_user', 'each_end_user')
            THEN 'limits_scope'
        WHEN (NEW.scope = 'end_user') <> (NEW.end_user IS NOT NULL) THEN 'limits_scope_end_user'
        WHEN NEW.scope = 'api_key' AND NEW.api_key_id IS NULL THEN 'limits_scope_api_key'
        WHEN NEW.template_id IS NOT NULL AND NEW.scope <> 'end_user' THEN 'limits_scope_child'
        WHEN NEW.unit NOT IN ('usd', 'requests', 'tokens', 'concurrency') THEN 'limits_unit'
        WHEN CASE WHEN NEW.unit = 'concurrency' THEN NEW.period IS NOT NULL
                  ELSE (NEW.period IN ('minute', 'hour', 'day', 'month', 'lifetime')) IS NOT TRUE
             END THEN 'limits_period'
        WHEN NEW.ceiling < 0 THEN 'limits_ceiling'
        WHEN (NEW.raised_to IS NULL) <> (NEW.raised_until IS NULL) THEN 'limits_raised'
        WHEN NEW.set_by NOT IN ('operator', 'administrator') THEN 'limits_set_by'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "limits" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', TABLE = 'limits', CONSTRAINT = broken;
    END IF;
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION public.corrections_of_v2(entries jsonb, late_ids uuid[])
 RETURNS public.entry_row[]
 LANGUAGE plpgsql
AS $function$
BEGIN
    RETURN ARRAY(
        SELECT ROW(
            x.organization_id, e.correction_id, 'correction', x.id, x.api_key_id, x.end_user,
            x.request_id, x.endpoint, e.model, x.requested_model, x.is_stream, e.outcome, e.status,
            0,
            e.input_tokens - coalesce(x.input_tokens, 0), e.cached_input_tokens,
            e.output_tokens - coalesce(x.output_tokens, 0),
            e.cost_nanos - coalesce(x.cost_nanos, 0), e.cost_source, x.bound_nanos, x.bound_tokens,
            x.price_version, x.limit_ids, x.limit_windows,
            coalesce(e.upstream_key_id, x.upstream_key_id), e.upstream_request_id, e.first_byte_ms,
            e.duration_ms, x.tags,
            CASE WHEN e.cost_source = 'not_charged' THEN 0
                 ELSE coalesce(e.input_tokens + e.output_tokens, x.tokens) END - x.tokens
        )::public.entry_row
        FROM (
            SELECT DISTINCT ON (e.organization_id, e.id) e.*
            FROM jsonb_to_recordset(entries) AS e (
                organization_id uuid, id uuid, correction_id uuid, model text, outcome text,
                status smallint, input_tokens bigint, cached_input_tokens bigint,
                output_tokens bigint, cost_nanos bigint, cost_source text, upstream_key_id uuid,
                upstream_request_id text, first_byte_ms integer, duration_ms integer
            )
            WHERE e.cost_nanos IS NOT NULL
            ORDER BY e.organization_id, e.id
        ) e
        CROSS JOIN LATERAL (
            SELECT x.*
            FROM public.ledger_entries x
            WHERE x.organization_id = e.organization_id
              AND x.id = e.id
              AND x.outcome = 'interrupted'
              AND x.id = ANY (late_ids)
              AND NOT EXISTS (
                  SELECT
                  FROM public.ledger_entries y
                  WHERE y.organization_id = x.organization_id
                    AND y.amends_id = x.id
                    AND y.kind = 'correction'
                  OFFSET 0
              )
            OFFSET 0  -- by its key, never by a join of all
        ) x
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.count_entries_v2(limit_ids uuid[], INOUT limits public.locked_limit[], INOUT used bigint[], INOUT held bigint[], INOUT entries public.entry_row[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    entry public.entry_row;
    is_call boolean;   -- which held what it could need
    is_moved boolean;  -- to other windows
    place integer;
    unused bigint;
    slot integer;
BEGIN
    FOR m IN 1 .. cardinality(entries) LOOP
        entry := entries[m];
        is_call := entry.kind = 'call';
        is_moved := false;
        FOR n IN 1 .. cardinality(entry.limit_ids) LOOP
            place := array_position(limit_ids, entry.limit_ids[n]);
            CONTINUE WHEN place IS NULL;
            IF limits[place].bucket_s IS NULL THEN
                used[place] := used[place] + CASE limits[place].unit
                    WHEN 'usd' THEN entry.cost_nanos
                    WHEN 'tokens' THEN entry.tokens
                    WHEN 'requests' THEN entry.requests
                    ELSE 0 END;
                IF is_call THEN
                    held[place] := held[place] - public.amount_of(
                        limits[place].unit, entry.bound_nanos, entry.bound_tokens, 1
                    );
                END IF;
                IF entry.limit_windows[n] <> limits[place].window_at THEN
                    entry.limit_windows[n] := limits[place].window_at;
                    is_moved := true;
                END IF;
                CONTINUE;
            END IF;
            -- Its bound was counted as used when it was admitted. What was not used is given back in
            -- the same bucket.
            unused := CASE WHEN NOT is_call THEN 0
                           WHEN limits[place].unit = 'tokens' THEN entry.bound_tokens
                           ELSE 1 END
                - CASE limits[place].unit WHEN 'tokens' THEN entry.tokens ELSE entry.requests END;
            IF unused <> 0 AND entry.limit_windows[n]
                > limits[place].window_at - 61 * limits[place].bucket_s * interval '1 second'
            THEN
                slot := public.slot_of(entry.limit_windows[n], limits[place].bucket_s);
                limits[place].ring[slot] := limits[place].ring[slot] - unused;
                limits[place].is_changed := true;
                used[place] := used[place] - unused;
            END IF;
        END LOOP;
        IF is_moved THEN
            entries[m] := entry;
        END IF;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.count_usage(sign integer, counted_from timestamp with time zone, counted_to timestamp with time zone, first_id uuid, end_id uuid)
 RETURNS TABLE(api_key_id uuid, last_used_at timestamp with time zone)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH batch AS MATERIALIZED (
        SELECT date_trunc('hour', e.counted_at, 'UTC') AS hour, e.organization_id, e.api_key_id,
               e.model, e.endpoint, e.outcome,
               max(e.counted_at) FILTER (WHERE e.calls > 0) AS last_used_at,
               sum(e.entries) AS entries, sum(e.calls) AS calls, sum(e.failures) AS failures,
               sum(e.input_tokens) AS input_tokens,
               sum(e.cached_input_tokens) AS cached_input_tokens,
               sum(e.output_tokens) AS output_tokens, sum(e.cost_nanos) AS cost_nanos,
               sum(e.unknown_costs) AS unknown_costs, sum(e.first_bytes) AS first_bytes,
               sum(e.durations) AS durations
        FROM public.organizations o
        CROSS JOIN LATERAL (
            SELECT x.*
            FROM derived.entries x
            WHERE x.organization_id = o.id
              AND x.counted_at >= count_usage.counted_from
              AND x.counted_at < count_usage.counted_to
              AND (count_usage.first_id IS NULL
                   OR x.id >= count_usage.first_id AND x.id < count_usage.end_id)
            OFFSET 0
        ) e
        GROUP BY 1, 2, 3, 4, 5, 6
    ), counted AS (
        INSERT INTO derived.usage AS kept (
            cut, start_at, organization_id, api_key_id, model, endpoint, outcome, entries, calls,
            failures, input_tokens, cached_input_tokens, output_tokens, cost_nanos, unknown_costs,
            first_bytes, durations
        )
        SELECT c.cut, date_trunc(c.unit, b.hour, 'UTC'),
               CASE WHEN c.has_key THEN b.organization_id END,
               CASE WHEN c.has_key THEN b.api_key_id END,
               CASE WHEN c.has_model THEN b.model END,
               CASE WHEN c.has_model THEN b.endpoint END,
               CASE WHEN c.has_model THEN b.outcome END,
               sign * sum(b.entries), sign * sum(b.calls), sign * sum(b.failures),
               sign * sum(b.input_tokens), sign * sum(b.cached_input_tokens),
               sign * sum(b.output_tokens), sign * sum(b.cost_nanos), sign * sum(b.unknown_costs),
               sign * sum(b.first_bytes), sign * sum(b.durations)
        FROM batch b
        CROSS JOIN (
            VALUES ('hour', 'hour', true, true), ('day', 'day', true, true),
                   ('key_hour', 'hour', true, false), ('key_day', 'day', true, false),
                   ('model_hour', 'hour', false, true), ('model_day', 'day', false, true)
        ) AS c (cut, unit, has_key, has_model)
        GROUP BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT (cut, organization_id, start_at, api_key_id, model, endpoint, outcome)
        DO UPDATE SET
            entries = kept.entries + excluded.entries,
            calls = kept.calls + excluded.calls,
            failures = kept.failures + excluded.failures,
            input_tokens = kept.input_tokens + excluded.input_tokens,
            cached_input_tokens = kept.cached_input_tokens + excluded.cached_input_tokens,
            output_tokens = kept.output_tokens + excluded.output_tokens,
            cost_nanos = kept.cost_nanos + excluded.cost_nanos,
            unknown_costs = kept.unknown_costs + excluded.unknown_costs,
            first_bytes = kept.first_bytes + excluded.first_bytes,
            durations = kept.durations + excluded.durations
    )
    SELECT b.api_key_id, max(b.last_used_at)
    FROM batch b
    WHERE b.last_used_at IS NOT NULL
    GROUP BY b.api_key_id;
END
$function$;

CREATE OR REPLACE FUNCTION public.credit(call_organization_id uuid, call_id uuid, credit_id uuid, credit_nanos bigint, credit_note text)
 RETURNS TABLE(verdict text, left_nanos bigint)
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
#variable_conflict use_column
DECLARE
    call public.ledger_entries;
    same public.ledger_entries;
    locked record;
    credited public.entry_row;
    counted record;
BEGIN
    -- One credit of an organization at a time; before the ledger is touched, as in every change.
    PERFORM FROM public.organizations o WHERE o.id = call_organization_id FOR NO KEY UPDATE;
    -- Before the clock is read: roll-ups wait for whoever has this lock.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;

    SELECT x.* INTO call
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = call_id;
    IF call.id IS NULL OR call.kind <> 'call' THEN
        verdict := CASE WHEN call.id IS NULL THEN 'no_call' ELSE 'not_a_call' END;
        RETURN NEXT;
        RETURN;
    END IF;

    locked := public.lock_limits_v2(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = call_organization_id
              AND l.id = ANY (call.limit_ids)
              AND l.unit = 'usd'
        ),
        NULL, NULL, NULL
    );

    SELECT x.* INTO same
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = credit_id;
    SELECT coalesce(call.cost_nanos, 0) + coalesce(sum(x.cost_nanos), 0) INTO left_nanos
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.amends_id = call_id;
    verdict := CASE
        WHEN same.kind = 'credit' AND same.amends_id = call_id
             AND same.cost_nanos = -credit_nanos AND same.note = credit_note THEN 'repeated'
        WHEN same.id IS NOT NULL THEN 'id_taken'
        WHEN credit_nanos > left_nanos THEN 'too_much'
        ELSE 'credited'
    END;
    RETURN NEXT;
    IF verdict <> 'credited' THEN
        RETURN;
    END IF;

    -- A credit counts as a correction does: it holds nothing.
    credited.kind := 'credit';
    credited.cost_nanos := -credit_nanos;
    credited.limit_ids := call.limit_ids;
    credited.limit_windows := call.limit_windows;
    counted := public.count_entries_v2(
        locked.ids, locked.limits, locked.used, locked.held, ARRAY[credited]
    );

    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, cost_nanos, cost_source, price_version, limit_ids,
        limit_windows, counted_at, tags, note
    )
    VALUES (
        call_organization_id, credit_id, 'credit', call_id, call.api_key_id, call.end_user,
        call.request_id, call.endpoint, call.model, call.requested_model, call.is_stream,
        -credit_nanos, 'manual', call.price_version, call.limit_ids,
        counted.entries[1].limit_windows, locked.decided_at, call.tags, credit_note
    );

    PERFORM public.write_limits_v2(locked, counted.limits, counted.used, counted.held);
END
$function$;

CREATE OR REPLACE FUNCTION public.csv_cell(cell text)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE
        WHEN cell IS NULL THEN ''
        WHEN cell ~ '[",\r\n]' OR cell ~ '^[-=+@\t]'
        THEN '"' || CASE WHEN cell ~ '^[-=+@\t\r]' THEN '''' ELSE '' END
                 || replace(cell, '"', '""') || '"'
        ELSE cell
    END
$function$;

CREATE OR REPLACE FUNCTION public.drop_ledger_month(month timestamp with time zone, organization_ids uuid[], limit_ids uuid[], windows timestamp with time zone[], amounts bigint[], attempts integer)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
DECLARE
    name CONSTANT text := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    FOR attempt IN 1 .. attempts LOOP
        BEGIN
            IF public.is_month_read(name) THEN
                RAISE lock_not_available;
            END IF;
            PERFORM set_config('lock_timeout', '100ms', true);
            LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', '50ms', true);
            EXECUTE format(
                'LOCK TABLE ledger_partitions.%I, ledger_partitions.ledger_entries_default'
                ' IN ACCESS EXCLUSIVE MODE',
                name
            );
            PERFORM
            FROM public.limits l
            WHERE (l.organization_id, l.id) IN (SELECT * FROM unnest(organization_ids, limit_ids))
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE;
            UPDATE public.limits l
            SET carried = l.carried + c.amount
            FROM unnest(organization_ids, limit_ids, windows, amounts)
                AS c (organization_id, limit_id, window_at, amount)
            WHERE l.organization_id = c.organization_id
              AND l.id = c.limit_id
              AND l.window_start = c.window_at;
            EXECUTE format('DROP TABLE ledger_partitions.%I', name);
            RETURN true;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    RETURN false;
END
$function$;

CREATE OR REPLACE FUNCTION public.end_calls_v2(entries jsonb, only_expired boolean, OUT written public.entry_row[], OUT released public.entry_row[], OUT limit_ids uuid[], OUT late_ids uuid[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_variable
DECLARE
    now CONSTANT timestamptz := clock_timestamp();
    organization_ids uuid[] := '{}';
    ids uuid[] := '{}';
    ended_ids uuid[] := '{}';
    hold record;
    call public.ended_call;
BEGIN
    FOR place IN 0 .. jsonb_array_length(entries) - 1 LOOP
        organization_ids := organization_ids || (entries -> place ->> 'organization_id')::uuid;
        ids := ids || (entries -> place ->> 'id')::uuid;
    END LOOP;
    written := '{}';
    released := '{}';
    FOR hold IN
        DELETE FROM public.holds h
        WHERE h.organization_id = ANY (organization_ids)
          AND h.id = ANY (ids)
          AND h.organization_id = organization_ids[array_position(ids, h.id)]
          AND (NOT only_expired OR h.lease_until < now)
        RETURNING h.organization_id, h.id, h.api_key_id, h.end_user, h.request_id, h.endpoint,
                  h.model, h.is_stream, h.bound_nanos, h.bound_tokens, h.limit_ids,
                  h.limit_windows, h.price_version, h.upstream_key_id, h.upstream_request_id,
                  h.tags, h.requested_model
    LOOP
        ended_ids := ended_ids || hold.id;
        IF hold.limit_ids <> '{}' THEN
            limit_ids := limit_ids || hold.limit_ids;
        END IF;
        IF only_expired AND public.has_entry(hold.organization_id, hold.id) THEN
            released := released || public.release_of(
                hold.bound_nanos, hold.bound_tokens, hold.limit_ids, hold.limit_windows
            );
            CONTINUE;
        END IF;
        call := jsonb_populate_record(
            NULL::public.ended_call, entries -> array_position(ids, hold.id) - 1
        );
        IF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
            call.cost_nanos := hold.bound_nanos;
            call.cost_source := 'bound';
        ELSIF call.cost_source = 'estimated' THEN
            call.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
        END IF;
        written := written || ROW(
            hold.organization_id, hold.id, 'call', NULL, hold.api_key_id, hold.end_user,
            hold.request_id, hold.endpoint, call.model, coalesce(hold.requested_model, hold.model),
            hold.is_stream, call.outcome, call.status, 1, call.input_tokens,
            call.cached_input_tokens, call.output_tokens, call.cost_nanos, call.cost_source,
            hold.bound_nanos, hold.bound_tokens, hold.price_version, hold.limit_ids,
            hold.limit_windows, coalesce(call.upstream_key_id, hold.upstream_key_id),
            coalesce(call.upstream_request_id, hold.upstream_request_id), call.first_byte_ms,
            call.duration_ms, hold.tags,
            CASE WHEN call.cost_source = 'not_charged' THEN 0
                 ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0) END
        )::public.entry_row;
    END LOOP;
    IF NOT only_expired AND cardinality(ended_ids) < cardinality(ids) THEN
        -- The other calls ended already, or never began. Where the sweeper ended one, its entry may
        -- need a correction.
        SELECT array_agg(DISTINCT x.id), limit_ids || array_agg(DISTINCT c.limit_id)
        INTO late_ids, limit_ids
        FROM public.ledger_entries x
        LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
        WHERE x.organization_id = ANY (organization_ids)
          AND x.id = ANY (ids)
          AND x.outcome = 'interrupted'
          AND x.kind = 'call';
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION public.freeze_ledger_month(month timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
BEGIN
    EXECUTE format(
        'LOCK TABLE ledger_partitions.%I IN SHARE MODE',
        'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.has_entry(call_organization_id uuid, call_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
BEGIN
    -- As in write_holds().
    RETURN (
        SELECT true
        FROM public.ledger_entries x
        WHERE x.organization_id = call_organization_id
          AND x.id BETWEEN call_id AND call_id
        ORDER BY x.id
        LIMIT 1
    ) IS NOT NULL;
END
$function$;

CREATE OR REPLACE FUNCTION public.hold_of_call(call_organization_id uuid, call_id uuid, OUT id uuid, OUT bound_nanos bigint, OUT bound_tokens bigint, OUT limit_ids uuid[], OUT limit_windows timestamp with time zone[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
BEGIN
    SELECT h.id, h.bound_nanos, h.bound_tokens, h.limit_ids, h.limit_windows
    INTO id, bound_nanos, bound_tokens, limit_ids, limit_windows
    FROM public.holds h
    WHERE h.organization_id = call_organization_id
      AND h.id = call_id;
END
$function$;

CREATE OR REPLACE FUNCTION public.is_idle(unit text, period text, used bigint, window_start timestamp with time zone, buckets bigint[], bucket_at timestamp with time zone, instant timestamp with time zone)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE WHEN period IS NULL OR used = 0 AND buckets IS NULL THEN true
                WHEN buckets IS NULL THEN window_start < public.limit_window(period, instant)
                ELSE bucket_at
                     < instant - 61 * public.limit_bucket_s(unit, period) * interval '1 second'
           END
$function$;

CREATE OR REPLACE FUNCTION public.is_month_read(partition_name text)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $function$
    SELECT EXISTS (
        SELECT
        FROM pg_locks month
        WHERE month.relation = ('ledger_partitions.' || partition_name)::regclass
          AND month.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND month.pid <> pg_backend_pid()
          AND NOT EXISTS (
              SELECT
              FROM pg_locks ledger
              WHERE ledger.relation = 'public.ledger_entries'::regclass
                AND ledger.database = month.database
                AND ledger.pid = month.pid
          )
    )
$function$;

CREATE OR REPLACE FUNCTION public.ledger_months()
 RETURNS TABLE(month timestamp with time zone)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT to_date(named.month, 'YYYY_MM')::timestamp AT TIME ZONE 'UTC'
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL substring(c.relname::text FROM '^ledger_entries_(\d{4}_\d{2})$')
        AS named (month)
    WHERE i.inhparent = 'public.ledger_entries'::regclass
      AND named.month IS NOT NULL
$function$;

CREATE OR REPLACE FUNCTION public.limit_bucket_s(unit text, period text)
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE
AS $function$
    SELECT CASE WHEN unit IN ('requests', 'tokens')
                THEN CASE period WHEN 'minute' THEN 1 WHEN 'hour' THEN 60 END END
$function$;

CREATE OR REPLACE FUNCTION public.limit_child_id(template_id uuid, end_user bytea)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE
AS $function$
    SELECT left(encode(sha256(uuid_send(template_id) || end_user), 'hex'), 32)::uuid
$function$;

CREATE OR REPLACE FUNCTION public.limit_ends_at(period text, bucket_s integer, window_at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE WHEN bucket_s IS NULL THEN public.limit_resets_at(period, window_at)
                ELSE window_at + 61 * bucket_s * interval '1 second' END
$function$;

CREATE OR REPLACE FUNCTION public.limit_of_template(INOUT l public.limit_row)
 RETURNS public.limit_row
 LANGUAGE plpgsql
 STABLE
AS $function$
DECLARE
    template record;
BEGIN
    SELECT t.ceiling, t.raised_to, t.raised_until, t.alert_percents INTO template
    FROM public.limits t
    WHERE t.organization_id = l.organization_id
      AND t.id = l.template_id;
    IF FOUND THEN
        l.ceiling := template.ceiling;
        l.raised_to := template.raised_to;
        l.raised_until := template.raised_until;
        l.alert_percents := template.alert_percents;
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION public.limit_resets_at(period text, window_start timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE WHEN period <> 'lifetime'
                THEN (window_start AT TIME ZONE 'UTC' + ('1 ' || period)::interval)
                    AT TIME ZONE 'UTC' END
$function$;

CREATE OR REPLACE FUNCTION public.limit_ring(buckets bigint[], bucket_at timestamp with time zone, bucket_s integer, instant timestamp with time zone)
 RETURNS bigint[]
 LANGUAGE plpgsql
 IMMUTABLE
AS $function$
DECLARE
    newest bigint := floor(extract(epoch FROM bucket_at) / bucket_s);
    running bigint := floor(extract(epoch FROM instant) / bucket_s);
BEGIN
    IF buckets IS NULL OR running - newest > 60 THEN
        RETURN array_fill(0::bigint, ARRAY[61]);
    END IF;
    FOR passed IN newest + 1 .. running LOOP
        buckets[passed % 61 + 1] := 0;
    END LOOP;
    RETURN buckets;
END
$function$;

CREATE OR REPLACE FUNCTION public.limit_window(period text, instant timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE
AS $function$
    SELECT CASE WHEN period = 'lifetime' OR period IS NULL THEN 'epoch'
                ELSE date_trunc(period, instant, 'UTC') END
$function$;

CREATE OR REPLACE FUNCTION public.limits_as_of(wanted uuid[], instant timestamp with time zone)
 RETURNS TABLE(organization_id uuid, id uuid, scope text, api_key_id uuid, end_user bytea, template_id uuid, model text, unit text, period text, ceiling bigint, used bigint, held bigint, bucket_s integer, window_at timestamp with time zone, resets_at timestamp with time zone, ring bigint[], alert_percents smallint[], alert_at bigint)
 LANGUAGE plpgsql
 STABLE
AS $function$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.template_id, l.model,
           l.unit, l.period, s.ceiling, r.used[1], r.held[1], s.bucket_s, s.window_at,
           public.limit_ends_at(l.period, s.bucket_s, s.window_at), s.ring, s.alert_percents,
           public.alert_at(l.unit, s.ceiling, s.alert_percents, s.alerted_percent)
    FROM public.limits l
    CROSS JOIN LATERAL public.limits_at(
        ARRAY[
            ROW(
                l.organization_id, l.id, l.template_id, l.scope, l.model, l.unit, l.period,
                l.ceiling, l.raised_to, l.raised_until, l.used, l.held, l.window_start, l.buckets,
                l.bucket_at, l.alert_percents, l.alerted_percent
            )::public.limit_row
        ],
        instant
    ) r
    CROSS JOIN LATERAL unnest(r.limits) s
    WHERE l.id = ANY (wanted)
    ORDER BY l.organization_id, l.id;
END
$function$;

CREATE OR REPLACE FUNCTION public.limits_at(rows public.limit_row[], instant timestamp with time zone, OUT limits public.locked_limit[], OUT used bigint[], OUT held bigint[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    l public.limit_row;
    bucket_s integer;
    window_at timestamptz;
    ring bigint[];
    amount bigint;
    bucket bigint;
BEGIN
    FOREACH l IN ARRAY rows LOOP
        bucket_s := public.limit_bucket_s(l.unit, l.period);
        -- A clock that went back stays with what is newest until it has caught up.
        IF bucket_s IS NULL THEN
            ring := NULL;
            window_at := greatest(l.window_start, public.limit_window(l.period, instant));
            amount := CASE WHEN l.window_start = window_at THEN l.used ELSE 0 END;
        ELSE
            window_at := greatest(
                l.bucket_at, date_bin(bucket_s * interval '1 second', instant, 'epoch')
            );
            ring := CASE
                WHEN l.bucket_at = window_at AND l.buckets IS NOT NULL THEN l.buckets
                ELSE public.limit_ring(l.buckets, l.bucket_at, bucket_s, window_at) END;
            amount := 0;
            FOREACH bucket IN ARRAY ring LOOP
                amount := amount + bucket;
            END LOOP;
        END IF;
        IF l.template_id IS NOT NULL THEN
            l := public.limit_of_template(l);
        END IF;
        used := used || amount;
        held := held || CASE WHEN bucket_s IS NULL THEN l.held ELSE 0 END;
        limits := limits || ROW(
            l.id, l.template_id, l.scope, l.model, l.unit, l.period,
            CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END, bucket_s,
            window_at, ring, l.alert_percents,
            CASE WHEN l.window_start = window_at THEN l.alerted_percent ELSE 0 END,
            l.window_start IS DISTINCT FROM window_at, false
        )::public.locked_limit;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.limits_binding(call_organization_id uuid, call_api_key_id uuid, call_end_user bytea)
 RETURNS TABLE(id uuid, scope text)
 LANGUAGE plpgsql
 STABLE
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION public.limits_of_caller(limits public.locked_limit[], ids uuid[], call public.asking_call, applying public.applying_limits, child_ids uuid[], OUT places integer[], OUT rate_places integer[], OUT limit_ids uuid[], OUT limit_windows timestamp with time zone[])
 RETURNS record
 LANGUAGE plpgsql
 STABLE
AS $function$
DECLARE
    own_ids uuid[] := coalesce(call.limit_ids, '{}');
    id uuid;
    place integer;
BEGIN
    places := '{}';
    rate_places := '{}';
    limit_ids := '{}';
    limit_windows := '{}';
    IF call.template_ids IS NOT NULL THEN
        FOREACH place IN ARRAY
            array_positions(applying.template_users, coalesce(call.end_user, ''))
        LOOP
            -- Calls of other models, or of other keys, may bring the same pair again.
            IF applying.template_ids[place] = ANY (call.template_ids)
               AND child_ids[place] <> ALL (own_ids) THEN
                own_ids := own_ids || child_ids[place];
            END IF;
        END LOOP;
    END IF;
    FOREACH id IN ARRAY own_ids LOOP
        place := array_position(ids, id);
        CONTINUE WHEN place IS NULL OR limits[place].model <> call.model;
        places := places || place;
        limit_ids := limit_ids || id;
        limit_windows := limit_windows || limits[place].window_at;
        IF limits[place].unit IN ('requests', 'tokens') THEN
            rate_places := rate_places || place;
        END IF;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.limits_of_calls_v2(calls public.asking_call[], OUT applying public.applying_limits)
 RETURNS public.applying_limits
 LANGUAGE plpgsql
 IMMUTABLE
AS $function$
DECLARE
    caller text := '';
    template_id uuid;
    ids uuid[];
    template_ids uuid[];
    template_users bytea[];
BEGIN
    FOR n IN 1 .. cardinality(calls) LOOP
        CONTINUE WHEN calls[n].caller = caller;
        caller := calls[n].caller;
        ids := ids || calls[n].limit_ids;
        IF calls[n].template_ids IS NOT NULL THEN
            FOREACH template_id IN ARRAY calls[n].template_ids LOOP
                template_ids := template_ids || template_id;
                template_users := template_users || coalesce(calls[n].end_user, '');
            END LOOP;
        END IF;
    END LOOP;
    applying := ROW(ids, template_ids, template_users, NULL);
END
$function$;

CREATE OR REPLACE FUNCTION public.lock_holds(entries jsonb, calls public.asking_call[], OUT left_ids uuid[])
 RETURNS uuid[]
 LANGUAGE plpgsql
AS $function$
DECLARE
    hold record;
BEGIN
    FOR hold IN
        SELECT h.limit_ids, w.is_moved
        FROM (
            SELECT c.organization_id, c.id, true AS is_moved
            FROM unnest(calls) c
            WHERE c.is_moved
            UNION ALL
            SELECT e.organization_id, e.id, false
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            ORDER BY organization_id, id
        ) w
        CROSS JOIN LATERAL (
            SELECT h.limit_ids
            FROM public.holds h
            WHERE h.organization_id = w.organization_id
              AND h.id = w.id
            FOR UPDATE
        ) h
    LOOP
        IF hold.is_moved AND hold.limit_ids <> '{}' THEN
            left_ids := left_ids || hold.limit_ids;
        END IF;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.lock_limits_v2(limit_ids uuid[], template_ids uuid[], template_users bytea[], most_end_users integer, OUT decided_at timestamp with time zone, OUT child_ids uuid[], OUT ids uuid[], OUT limits public.locked_limit[], OUT used bigint[], OUT held bigint[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    locked public.limit_row[];
    rolled record;
BEGIN
    IF template_ids IS NOT NULL THEN
        child_ids := public.make_children(template_ids, template_users, most_end_users);
    END IF;
    IF limit_ids IS NOT NULL OR child_ids IS NOT NULL THEN
        SELECT array_agg(o.id), array_agg(o.found) INTO ids, locked
        FROM (
            SELECT l.id, ROW(
                       l.organization_id, l.id, l.template_id, l.scope, l.model, l.unit, l.period,
                       l.ceiling, l.raised_to, l.raised_until, l.used, l.held, l.window_start,
                       l.buckets, l.bucket_at, l.alert_percents, l.alerted_percent
                   )::public.limit_row AS found
            FROM public.limits l
            WHERE l.id = ANY (limit_ids || child_ids)
            -- Everybody locks in this order, so that no two wait for each other.
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) o;
        IF NOT child_ids <@ coalesce(ids, '{}') THEN
            -- A counter that was idle was swept before its lock was taken. To make it again needs
            -- its template, which is locked before limits: so the whole batch is done again.
            RAISE EXCEPTION 'a counter was swept' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();
    IF ids IS NULL THEN
        ids := '{}';
        limits := '{}';
        used := '{}';
        held := '{}';
    ELSE
        rolled := public.limits_at(locked, decided_at);
        limits := rolled.limits;
        used := rolled.used;
        held := rolled.held;
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION public.make_children(template_ids uuid[], end_users bytea[], most_children integer)
 RETURNS uuid[]
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
DECLARE
    child_ids uuid[];
    pair record;
BEGIN
    SELECT array_agg(public.limit_child_id(p.template_id, p.end_user) ORDER BY p.place)
    INTO child_ids
    FROM unnest(template_ids, end_users) WITH ORDINALITY AS p (template_id, end_user, place);
    IF child_ids <@ ARRAY(SELECT l.id FROM public.limits l WHERE l.id = ANY (child_ids)) THEN
        RETURN child_ids;
    END IF;
    PERFORM
    FROM public.limits l
    WHERE l.id = ANY (template_ids)
    ORDER BY l.organization_id, l.id
    FOR NO KEY UPDATE;
    FOR pair IN
        SELECT p.place, p.template_id, p.end_user, child_ids[p.place] AS id
        FROM unnest(template_ids, end_users) WITH ORDINALITY AS p (template_id, end_user, place)
        ORDER BY p.place
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM public.limits l WHERE l.id = pair.id);
        IF pair.end_user <> '' THEN
            UPDATE public.limits t
            SET children = t.children + 1
            WHERE t.id = pair.template_id
              AND t.children < most_children;
            IF NOT FOUND THEN
                pair.end_user := '\x00';
                pair.id := public.limit_child_id(pair.template_id, pair.end_user);
                child_ids[pair.place] := pair.id;
            END IF;
        END IF;
        INSERT INTO public.limits (
            organization_id, id, scope, api_key_id, end_user, template_id, model, unit, period,
            ceiling
        )
        SELECT t.organization_id, pair.id, 'end_user', t.api_key_id, pair.end_user, t.id, t.model,
               t.unit, t.period, t.ceiling
        FROM public.limits t
        WHERE t.id = pair.template_id
        ON CONFLICT DO NOTHING;
    END LOOP;
    RETURN child_ids;
END
$function$;

CREATE OR REPLACE FUNCTION public.make_ledger_partition(month timestamp with time zone, max_moved integer)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
DECLARE
    name CONSTANT text := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
    first_id CONSTANT uuid := public.uuid7_floor(month);
    end_id CONSTANT uuid := public.uuid7_floor(
        (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
    );
    strays integer;
BEGIN
    IF to_regclass('ledger_partitions.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', '100ms', true);
    -- Before any partition, as everybody does: the drop of a month has the ledger when it locks the
    -- default partition.
    LOCK TABLE ONLY public.ledger_entries IN SHARE UPDATE EXCLUSIVE MODE;
    SELECT count(*) INTO strays
    FROM (
        SELECT
        FROM ledger_partitions.ledger_entries_default
        WHERE id >= first_id
          AND id < end_id
        LIMIT max_moved + 1
    ) stray;
    IF strays > max_moved THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE ledger_partitions.%I (LIKE public.ledger_entries INCLUDING ALL)', name
    );
    EXECUTE format(
        'CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_partitions.%I'
        ' FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()',
        name
    );
    LOCK TABLE ledger_partitions.ledger_entries_default IN ACCESS EXCLUSIVE MODE;
    IF strays > 0 THEN
        EXECUTE format(
            'INSERT INTO ledger_partitions.%I'
            ' SELECT * FROM ledger_partitions.ledger_entries_default WHERE id >= $1 AND id < $2',
            name
        ) USING first_id, end_id;
        ALTER TABLE ledger_partitions.ledger_entries_default
            DISABLE TRIGGER ledger_entries_insert_only;
        DELETE FROM ledger_partitions.ledger_entries_default WHERE id >= first_id AND id < end_id;
        ALTER TABLE ledger_partitions.ledger_entries_default
            ENABLE TRIGGER ledger_entries_insert_only;
    END IF;
    EXECUTE format(
        'ALTER TABLE public.ledger_entries ATTACH PARTITION ledger_partitions.%I'
        ' FOR VALUES FROM (%L) TO (%L)',
        name, first_id, end_id
    );
    RETURN true;
END
$function$;

CREATE OR REPLACE FUNCTION public.move_hold(call record, moved_limit_ids uuid[], moved_limit_windows timestamp with time zone[], moved_lease_until timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION public.refusal_by(limits public.locked_limit[], used bigint[], held bigint[], places integer[], nanos bigint, tokens bigint, decided_at timestamp with time zone)
 RETURNS public.batch_result
 LANGUAGE plpgsql
AS $function$
DECLARE
    verdicts CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    place integer;
    state public.locked_limit;
    need bigint;
    rank integer;
    retry_at timestamptz;
    worst_rank integer := 0;
    worst_retry_at timestamptz;
    refusal public.batch_result;
BEGIN
    FOREACH place IN ARRAY places LOOP
        state := limits[place];
        need := public.amount_of(state.unit, nanos, tokens, 1);
        CONTINUE WHEN used[place] + held[place] + need <= state.ceiling;
        rank := CASE WHEN need IS NULL THEN 4
                     WHEN state.unit <> 'usd' THEN 2
                     WHEN used[place] + need > state.ceiling THEN 3
                     ELSE 1 END;
        retry_at := CASE WHEN rank > 2 OR need > state.ceiling THEN 'infinity'
                         ELSE public.room_at_v2(
                             state, used[place], held[place], need, decided_at
                         ) END;
        CONTINUE WHEN rank < worst_rank OR rank = worst_rank AND retry_at <= worst_retry_at;
        worst_rank := rank;
        worst_retry_at := retry_at;
        refusal.verdict := verdicts[rank];
        refusal.limit_id := coalesce(state.template_id, state.id);
        refusal.scope := state.scope;
        refusal.model := state.model;
        refusal.unit := state.unit;
        refusal.period := state.period;
        refusal.used := used[place];
        refusal.held := held[place];
        refusal.ceiling := state.ceiling;
        refusal.needed := need;
        refusal.resets_at := public.limit_resets_at(state.period, state.window_at);
        IF state.bucket_s IS NOT NULL THEN
            refusal.used := used[place] + held[place];
            refusal.held := 0;
            refusal.resets_at := NULL;
        END IF;
        refusal.retry_after_s :=
            ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
    END LOOP;
    RETURN refusal;
END
$function$;

CREATE OR REPLACE FUNCTION public.refuse_change()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION '% is insert-only: write a new event that amends the old one', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'insert_only';
END
$function$;

CREATE OR REPLACE FUNCTION public.release_of(held_nanos bigint, held_tokens bigint, held_limit_ids uuid[], held_windows timestamp with time zone[])
 RETURNS public.entry_row
 LANGUAGE plpgsql
AS $function$
DECLARE
    entry public.entry_row;
BEGIN
    entry.kind := 'call';
    entry.requests := 0;
    entry.tokens := 0;
    entry.cost_nanos := 0;
    entry.bound_nanos := held_nanos;
    entry.bound_tokens := held_tokens;
    entry.limit_ids := held_limit_ids;
    entry.limit_windows := held_windows;
    RETURN entry;
END
$function$;

CREATE OR REPLACE FUNCTION public.repair_limits(repaired_organization_id uuid, limit_ids uuid[], counters text[], counted timestamp with time zone[], drifts bigint[])
 RETURNS TABLE(limit_id uuid, counter text, window_at timestamp with time zone, stands bigint, proven bigint)
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
#variable_conflict use_column
DECLARE
    locked record;
    limits public.locked_limit[];
    used bigint[];
    held bigint[];
    i integer;
    slot integer;
BEGIN
    locked := public.lock_limits_v2(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            WHERE l.organization_id = repaired_organization_id
              AND l.id = ANY (limit_ids)
        ),
        NULL, NULL, NULL
    );
    limits := locked.limits;
    used := locked.used;
    held := locked.held;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(locked.ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := held[i];
            held[i] := stands - drifts[n];
        ELSIF limits[i].bucket_s IS NULL THEN
            CONTINUE WHEN limits[i].window_at <> counted[n];
            stands := used[i];
            used[i] := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n]
                <= limits[i].window_at - 61 * limits[i].bucket_s * interval '1 second';
            slot := public.slot_of(counted[n], limits[i].bucket_s);
            stands := limits[i].ring[slot];
            limits[i].ring[slot] := stands - drifts[n];
            limits[i].is_changed := true;
        END IF;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits_v2(locked, limits, used, held);
END
$function$;

CREATE OR REPLACE FUNCTION public.repeated_of(calls public.asking_call[])
 RETURNS uuid[]
 LANGUAGE plpgsql
AS $function$
BEGIN
    RETURN ARRAY(
        SELECT c.id
        FROM unnest(calls) c
        WHERE c.is_moved IS NOT TRUE
          AND EXISTS (
              SELECT
              FROM public.holds h
              WHERE h.organization_id = c.organization_id
                AND h.id = c.id
              OFFSET 0  -- by its key, never by a join of all
          )
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.room_at_v2(state public.locked_limit, used bigint, held bigint, need bigint, decided_at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
AS $function$
DECLARE
    missing bigint := used + need - state.ceiling;
    running bigint := extract(epoch FROM state.window_at)::bigint / state.bucket_s;
BEGIN
    IF state.bucket_s IS NULL THEN
        -- Where only what other calls hold is in the way, it may be free at any time.
        RETURN CASE WHEN missing > 0
                    THEN coalesce(public.limit_resets_at(state.period, state.window_at), 'infinity')
                    ELSE decided_at + interval '1 second' END;
    END IF;
    -- What this batch has admitted is in the newest bucket.
    missing := missing + held;
    FOR bucket IN running - 60 .. running LOOP
        missing := missing - state.ring[bucket % 61 + 1];
        IF missing <= 0 OR bucket = running THEN
            RETURN to_timestamp((bucket + 61) * state.bucket_s);
        END IF;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.settle_and_admit(entries jsonb, only_expired boolean, calls jsonb, process_id uuid, lease interval, most_end_users integer)
 RETURNS SETOF public.batch_result
 LANGUAGE plpgsql
 SET enable_bitmapscan TO 'off'
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
 SET lock_timeout TO '1500ms'
AS $function$
DECLARE
    asking public.asking_call[];
    applying public.applying_limits;
    ending record;
    written public.entry_row[];
    limit_ids uuid[];
    locked record;
    limits public.locked_limit[];
    used bigint[];
    held bigint[];
    counted record;
    admitted record;
    ended public.entry_row[];  -- of calls that take no hold after all
    result public.batch_result;
BEGIN
    -- Before the limits, as does whoever drops a month. An admission reads the ledger when it has
    -- the limits, so without this it and the drop would wait for each other.
    LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
    IF calls IS NOT NULL THEN
        asking := public.standings_of_calls_v3(calls, clock_timestamp());
        IF calls @? '$[*].end_user ? (@ != null)' THEN
            asking := public.with_end_users(asking);
        END IF;
        applying := public.limits_of_calls_v2(asking);
        limit_ids := applying.ids;
        IF calls @> '[{"is_moved": true}]' THEN
            limit_ids := limit_ids || public.lock_holds(entries, asking);
        END IF;
    END IF;
    IF entries IS NOT NULL THEN
        ending := public.end_calls_v2(entries, only_expired);
        limit_ids := limit_ids || ending.limit_ids;
    END IF;
    locked := public.lock_limits_v2(
        limit_ids, applying.template_ids, applying.template_users, most_end_users
    );
    limits := locked.limits;
    used := locked.used;
    held := locked.held;

    -- Settlements come first: what they free is room for the admissions.
    IF entries IS NOT NULL THEN
        IF ending.late_ids IS NOT NULL THEN
            ending.written :=
                ending.written || public.corrections_of_v2(entries, ending.late_ids);
        END IF;
        IF cardinality(limits) > 0 THEN
            counted := public.count_entries_v2(
                locked.ids, limits, used, held, ending.written || ending.released
            );
            ending.written := counted.entries[1 : cardinality(ending.written)];
            limits := counted.limits;
            used := counted.used;
            held := counted.held;
        END IF;
        written := ending.written;
        PERFORM public.write_entries(written, locked.decided_at);
        FOR n IN 1 .. cardinality(written) LOOP
            result.id := coalesce(written[n].amends_id, written[n].id);
            result.kind := written[n].kind;
            result.cost_nanos := written[n].cost_nanos;
            result.bound_nanos := written[n].bound_nanos;
            RETURN NEXT result;
        END LOOP;
        result := NULL;
        result.kind := 'alert';
        FOR place IN 1 .. cardinality(locked.ids) LOOP
            CONTINUE WHEN used[place] = locked.used[place];
            IF used[place] >= public.alert_at(
                limits[place].unit, limits[place].ceiling, limits[place].alert_percents,
                limits[place].alerted_percent
            ) THEN
                result.id := limits[place].id;
                RETURN NEXT result;
            END IF;
        END LOOP;
    END IF;
    IF calls IS NOT NULL THEN
        admitted := public.take_calls_v2(
            asking, applying, locked, lease, limits, used, held
        );
        limits := admitted.limits;
        used := admitted.used;
        held := admitted.held;
        ended := public.write_holds(
            admitted.taken, process_id, locked.decided_at, locked.decided_at + lease
        );
        IF cardinality(ended) > 0 AND cardinality(limits) > 0 THEN
            counted := public.count_entries_v2(
                locked.ids, limits, used, held, ended
            );
            limits := counted.limits;
            used := counted.used;
            held := counted.held;
        END IF;
        FOREACH result IN ARRAY admitted.results LOOP
            RETURN NEXT result;
        END LOOP;
    END IF;
    IF cardinality(limits) > 0 THEN
        PERFORM public.write_limits_v2(locked, limits, used, held);
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION public.slot_of(bucket_at timestamp with time zone, bucket_s integer)
 RETURNS integer
 LANGUAGE sql
 STABLE
AS $function$
    SELECT (extract(epoch FROM bucket_at)::bigint / bucket_s % 61 + 1)::integer
$function$;

CREATE OR REPLACE FUNCTION public.standings_of_calls_v3(calls jsonb, instant timestamp with time zone)
 RETURNS public.asking_call[]
 LANGUAGE plpgsql
AS $function$
BEGIN
    RETURN ARRAY(
        SELECT ROW(
            c.organization_id, c.id, c.api_key_id, decode(c.end_user, 'hex'), c.request_id,
            c.endpoint, c.model, c.is_stream, c.bound_nanos, c.bound_tokens, c.least_nanos,
            c.least_tokens, c.requested_model, c.price_version, c.tags, c.is_moved,
            concat(c.organization_id, c.api_key_id, c.end_user, ' ', c.model),
            coalesce(
                (
                    SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                                WHEN k.expires_at <= instant THEN 'expired_api_key'
                                WHEN k.digest <> decode(c.key_digest, 'base64')
                                    AND (
                                        k.previous_digest = decode(c.key_digest, 'base64')
                                        AND k.previous_until > instant
                                    ) IS NOT TRUE THEN 'expired_api_key'
                                WHEN (
                                    SELECT o.status
                                    FROM public.organizations o
                                    WHERE o.id = k.organization_id
                                ) <> 'active' THEN 'organization_inactive'
                                ELSE 'admitted' END
                    FROM public.api_keys k
                    WHERE k.id = c.api_key_id
                      AND k.organization_id = c.organization_id
                ),
                'invalid_api_key'
            ),
            l.limit_ids, l.template_ids
        )::public.asking_call
        FROM ROWS FROM (
            jsonb_to_recordset(calls) AS (
                organization_id uuid, id uuid, api_key_id uuid, end_user text, request_id text,
                endpoint text, model text, is_stream boolean, bound_nanos bigint,
                bound_tokens bigint, least_nanos bigint, least_tokens bigint, requested_model text,
                price_version integer, tags jsonb, is_moved boolean,
                key_digest text
            )
        ) WITH ORDINALITY AS c (
            organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
            bound_nanos, bound_tokens, least_nanos, least_tokens, requested_model, price_version,
            tags, is_moved, key_digest, place
        )
        CROSS JOIN LATERAL (
            SELECT array_agg(l.id) FILTER (WHERE l.scope <> 'each_end_user') AS limit_ids,
                   array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user') AS template_ids
            FROM (
                SELECT l.id, l.scope
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id IS NULL
                  AND l.end_user IS NULL
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
                UNION ALL
                SELECT l.id, l.scope
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id = c.api_key_id
                  AND l.end_user IS NULL
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
            ) l
        ) l
        ORDER BY c.place
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.sweep_children(most integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $function$
DECLARE
    found uuid[];
    versions text[];
    swept integer;
BEGIN
    WITH held AS MATERIALIZED (
        SELECT DISTINCT unnest(h.limit_ids) AS id FROM public.holds h
    )
    SELECT array_agg(l.id), array_agg(l.version) INTO found, versions
    FROM (
        SELECT l.id, l.xmin::text AS version
        FROM public.limits l
        JOIN public.limits t ON t.organization_id = l.organization_id AND t.id = l.template_id
        WHERE l.template_id IS NOT NULL
          AND l.held = 0
          AND (t.deleted_at IS NOT NULL OR public.is_idle(
              l.unit, l.period, l.used, l.window_start, l.buckets, l.bucket_at, clock_timestamp()
          ))
          AND NOT EXISTS (SELECT FROM held WHERE held.id = l.id)
        LIMIT most
    ) l;
    PERFORM
    FROM public.limits t
    WHERE t.id IN (SELECT l.template_id FROM public.limits l WHERE l.id = ANY (found))
    ORDER BY t.organization_id, t.id
    FOR NO KEY UPDATE;
    WITH unused AS (
        -- One that was written since it was found stays, and so does one that is in use right now.
        SELECT l.organization_id, l.id
        FROM unnest(found, versions) AS f (id, version)
        JOIN public.limits l ON l.id = f.id AND l.xmin::text = f.version
        FOR UPDATE OF l SKIP LOCKED
    ), gone AS (
        DELETE FROM public.limits l
        USING unused u
        WHERE l.organization_id = u.organization_id
          AND l.id = u.id
        RETURNING l.template_id, l.end_user
    ), updated AS (
        UPDATE public.limits t
        SET children = t.children - g.end_users
        FROM (
            SELECT g.template_id,
                   count(*) FILTER (WHERE g.end_user NOT IN ('', '\x00')) AS end_users
            FROM gone g
            GROUP BY g.template_id
        ) g
        WHERE t.id = g.template_id
    )
    SELECT count(*) INTO swept FROM gone;
    RETURN swept;
END
$function$;

CREATE OR REPLACE FUNCTION public.take_calls_v2(calls public.asking_call[], applying public.applying_limits, locked record, lease interval, INOUT limits public.locked_limit[], INOUT used bigint[], INOUT held bigint[], OUT taken public.hold_row[], OUT results public.batch_result[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    call public.asking_call;
    caller text := '';         -- the one for whom binding was computed
    binding record;
    repeated_ids uuid[];
    hold record;               -- the one that the call has already
    bounds record;
    kept record;               -- what a move that is refused leaves as it was
    freed record;
    result public.batch_result;
    place integer;
    is_refused boolean;
BEGIN
    taken := '{}';
    results := '{}';
    repeated_ids := public.repeated_of(calls);
    FOR number IN 1 .. cardinality(calls) LOOP
        call := calls[number];
        result := NULL;
        result.number := number;
        IF call.is_moved OR call.standing <> 'admitted' OR call.id = ANY (repeated_ids) THEN
            hold := public.hold_of_call(call.organization_id, call.id);
            result.verdict := CASE WHEN call.id = ANY (repeated_ids) THEN 'admitted'
                                   WHEN call.standing <> 'admitted' THEN call.standing
                                   WHEN hold.id IS NULL THEN 'not_held' END;
            IF result.verdict IS NOT NULL THEN
                result.granted_nanos := hold.bound_nanos;
                result.granted_tokens := hold.bound_tokens;
                results := results || result;
                CONTINUE;
            END IF;
        END IF;
        IF call.caller <> caller THEN
            caller := call.caller;
            binding := public.limits_of_caller(
                limits, locked.ids, call, applying, locked.child_ids
            );
        END IF;
        IF call.is_moved THEN
            SELECT limits, used, held INTO kept;
            freed := public.count_entries_v2(
                locked.ids, limits, used, held,
                ARRAY[
                    public.release_of(
                        hold.bound_nanos, hold.bound_tokens, hold.limit_ids, hold.limit_windows
                    )
                ]
            );
            limits := freed.limits;
            used := freed.used;
            held := freed.held;
        END IF;
        IF call.least_tokens IS NOT NULL THEN
            bounds := public.affordable_v2(
                limits, used, held, binding.places, call.least_nanos, call.least_tokens,
                call.bound_nanos, call.bound_tokens
            );
            call.bound_nanos := bounds.nanos;
            call.bound_tokens := bounds.tokens;
        END IF;
        is_refused := false;
        FOREACH place IN ARRAY binding.places LOOP
            -- Null, as for an amount that is not known, refuses.
            is_refused := (
                used[place] + held[place] + public.amount_of(
                    limits[place].unit, call.bound_nanos, call.bound_tokens, 1
                ) <= limits[place].ceiling
            ) IS NOT TRUE;
            EXIT WHEN is_refused;
        END LOOP;
        IF is_refused THEN
            result := public.refusal_by(
                limits, used, held, binding.places, call.bound_nanos, call.bound_tokens,
                locked.decided_at
            );
            result.number := number;
            IF call.is_moved THEN
                limits := kept.limits;
                used := kept.used;
                held := kept.held;
            END IF;
        ELSIF call.bound_nanos < 0 OR call.bound_tokens < 0 THEN
            RAISE EXCEPTION 'a bound is below zero' USING ERRCODE = 'check_violation';
        ELSE
            result.verdict := 'admitted';
            FOREACH place IN ARRAY binding.places LOOP
                held[place] := held[place] + public.amount_of(
                    limits[place].unit, call.bound_nanos, call.bound_tokens, 1
                );
            END LOOP;
            IF call.is_moved THEN
                PERFORM public.move_hold(
                    call, binding.limit_ids, binding.limit_windows, locked.decided_at + lease
                );
            ELSE
                taken := taken || ROW(
                    call.organization_id, call.id, call.api_key_id, call.end_user, call.request_id,
                    call.endpoint, call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                    binding.limit_ids, binding.limit_windows, call.price_version,
                    call.tags, call.requested_model
                )::public.hold_row;
            END IF;
        END IF;
        result.granted_nanos := call.bound_nanos;
        result.granted_tokens := call.bound_tokens;
        IF cardinality(binding.rate_places) > 0 THEN
            result := public.with_rates_v2(
                result, limits, used, held, binding.rate_places, locked.decided_at
            );
        END IF;
        results := results || result;
    END LOOP;
END
$function$;

CREATE OR REPLACE FUNCTION public.uncount_month(month timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
DECLARE
    first_id CONSTANT uuid := public.uuid7_floor(month);
    end_id CONSTANT uuid := public.uuid7_floor(
        (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'
    );
    rolled_up_to timestamptz;
    first_at timestamptz;
    last_at timestamptz;
BEGIN
    SELECT c.counted_to INTO rolled_up_to
    FROM derived.usage_cursor c
    FOR UPDATE;
    SELECT min(e.counted_at), max(e.counted_at) INTO first_at, last_at
    FROM public.ledger_entries e
    WHERE e.id >= first_id
      AND e.id < end_id
      AND e.counted_at < rolled_up_to;
    IF first_at IS NULL THEN
        RETURN;
    END IF;
    PERFORM public.count_usage(
        -1, first_at, least(rolled_up_to, last_at + interval '1 microsecond'), first_id, end_id
    );
    DELETE FROM derived.usage u
    WHERE u.start_at >= date_trunc('day', first_at, 'UTC')
      AND u.start_at <= last_at
      AND u.entries = 0;
END
$function$;

CREATE OR REPLACE FUNCTION public.usd_text(nanos bigint)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT regexp_replace((nanos::numeric / 1000000000)::numeric(30, 9)::text, '0{1,7}$', '')
$function$;

CREATE OR REPLACE FUNCTION public.uuid7_floor(at timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE STRICT
AS $function$
    SELECT (
        lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '00000000000000000000'
    )::uuid
$function$;

CREATE OR REPLACE FUNCTION public.with_end_users(INOUT calls public.asking_call[])
 RETURNS public.asking_call[]
 LANGUAGE plpgsql
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION public.with_rates_v2(result public.batch_result, limits public.locked_limit[], used bigint[], held bigint[], rate_places integer[], decided_at timestamp with time zone)
 RETURNS public.batch_result
 LANGUAGE plpgsql
AS $function$
DECLARE
    place integer;
    remaining bigint;
    reset_s integer;
BEGIN
    FOREACH place IN ARRAY rate_places LOOP
        remaining := greatest(0, limits[place].ceiling - used[place] - held[place]);
        reset_s := ceil(
            extract(
                epoch FROM public.limit_ends_at(
                    limits[place].period, limits[place].bucket_s, limits[place].window_at
                ) - decided_at
            )
        );
        IF limits[place].unit = 'requests' THEN
            CONTINUE WHEN remaining >= result.requests_left;
            result.requests_ceiling := limits[place].ceiling;
            result.requests_left := remaining;
            result.requests_reset_s := reset_s;
        ELSE
            CONTINUE WHEN remaining >= result.tokens_left;
            result.tokens_ceiling := limits[place].ceiling;
            result.tokens_left := remaining;
            result.tokens_reset_s := reset_s;
        END IF;
    END LOOP;
    RETURN result;
END
$function$;

CREATE OR REPLACE FUNCTION public.write_entries(entries public.entry_row[], counted_at timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_variable
DECLARE
    sources CONSTANT text[] := '{reported,computed,estimated,not_charged,bound,unknown}';
BEGIN
    FOR n IN 1 .. cardinality(entries) LOOP
        IF entries[n].outcome IS NULL OR entries[n].cost_source <> ALL (sources) THEN
            RAISE EXCEPTION 'an entry has no outcome, or an unknown source of its cost'
                USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, outcome, status, requests, input_tokens, cached_input_tokens,
        output_tokens, cost_nanos, cost_source, bound_nanos, bound_tokens, price_version,
        limit_ids, limit_windows, upstream_key_id, upstream_request_id, first_byte_ms, duration_ms,
        tags, tokens, counted_at, created_at
    )
    SELECT e.organization_id, e.id, e.kind, e.amends_id, e.api_key_id, e.end_user, e.request_id,
           e.endpoint, e.model, e.requested_model, e.is_stream, e.outcome, e.status, e.requests,
           e.input_tokens, e.cached_input_tokens, e.output_tokens, e.cost_nanos, e.cost_source,
           e.bound_nanos, e.bound_tokens, e.price_version, e.limit_ids, e.limit_windows,
           e.upstream_key_id, e.upstream_request_id, e.first_byte_ms, e.duration_ms, e.tags,
           e.tokens, counted_at, counted_at
    FROM unnest(entries) e;
END
$function$;

CREATE OR REPLACE FUNCTION public.write_holds(taken public.hold_row[], process_id uuid, decided_at timestamp with time zone, lease_until timestamp with time zone)
 RETURNS public.entry_row[]
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_variable
DECLARE
    first_id uuid;
    last_id uuid;
    count integer;
BEGIN
    FOR n IN 1 .. cardinality(taken) LOOP
        first_id := least(first_id, taken[n].id);
        last_id := greatest(last_id, taken[n].id);
    END LOOP;
    INSERT INTO public.holds (
        organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
        bound_nanos, bound_tokens, limit_ids, limit_windows, process_id, lease_until,
        price_version, tags, created_at, requested_model
    )
    SELECT h.organization_id, h.id, h.api_key_id, h.end_user, h.request_id, h.endpoint, h.model,
           h.is_stream, h.bound_nanos, h.bound_tokens, h.limit_ids, h.limit_windows, process_id,
           lease_until, h.price_version, h.tags, decided_at, h.requested_model
    FROM unnest(taken) h
    -- A range in order, since only the primary key serves it. For an equality every index costs the
    -- same while the table is empty, and a plan made then may read all entries of the organization
    -- when there are many. The range of all calls keeps other months closed.
    WHERE (
        SELECT true
        FROM public.ledger_entries x
        WHERE x.organization_id = h.organization_id
          AND x.id BETWEEN h.id AND h.id
          AND x.id BETWEEN first_id AND last_id
        ORDER BY x.id
        LIMIT 1
    ) IS NULL
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count = cardinality(taken) THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(
        SELECT public.release_of(t.bound_nanos, t.bound_tokens, t.limit_ids, t.limit_windows)
        FROM (
            SELECT t.*, row_number() OVER (PARTITION BY t.organization_id, t.id) AS nth
            FROM unnest(taken) t
        ) t
        WHERE t.nth > 1
           OR NOT EXISTS (
               SELECT
               FROM public.holds h
               WHERE h.organization_id = t.organization_id
                 AND h.id = t.id
                 AND h.xmin = pg_current_xact_id()::xid
               OFFSET 0
           )
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.write_limits_v2(locked record, limits public.locked_limit[], used bigint[], held bigint[])
 RETURNS void
 LANGUAGE plpgsql
AS $function$
DECLARE
    written public.written_limit[] := '{}';
    slot integer;
BEGIN
    FOR n IN 1 .. cardinality(limits) LOOP
        IF limits[n].bucket_s IS NULL THEN
            CONTINUE WHEN held[n] = locked.held[n] AND used[n] = locked.used[n];
            written := written || ROW(
                limits[n].id, used[n], held[n], limits[n].is_rolled, limits[n].window_at, NULL, NULL
            )::public.written_limit;
        ELSE
            CONTINUE WHEN held[n] = 0 AND NOT limits[n].is_changed;
            slot := public.slot_of(limits[n].window_at, limits[n].bucket_s);
            limits[n].ring[slot] := limits[n].ring[slot] + held[n];
            written := written || ROW(
                limits[n].id, 0, 0, false, NULL, limits[n].ring, limits[n].window_at
            )::public.written_limit;
        END IF;
    END LOOP;
    UPDATE public.limits l
    SET held = n.held,
        used = n.used,
        carried = CASE WHEN n.is_rolled THEN 0 ELSE l.carried END,
        alerted_percent = CASE WHEN n.is_rolled THEN 0 ELSE l.alerted_percent END,
        window_start = n.window_start,
        buckets = n.buckets,
        bucket_at = n.bucket_at
    FROM unnest(written) n
    WHERE l.id = n.id;
END
$function$;
