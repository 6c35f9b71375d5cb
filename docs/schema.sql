-- The schema after every migration, to be read. Made from migrations/ by scripts/docs.sh; do not
-- edit. Left out: the partitions of ledger_entries and the bookkeeping of the migrations.

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
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT api_keys_digest_length CHECK (octet_length(digest) = 32),
    CONSTRAINT api_keys_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT api_keys_previous_digest_length CHECK (octet_length(previous_digest) = 32),
    CONSTRAINT api_keys_previous_until CHECK ((previous_digest IS NULL) = (previous_until IS NULL)),
    CONSTRAINT api_keys_role CHECK (role IN ('inference', 'admin', 'operator'))
);
CREATE INDEX api_keys_organization_id_idx ON public.api_keys (organization_id, id);
CREATE UNIQUE INDEX api_keys_previous_digest_idx ON public.api_keys (previous_digest) WHERE (previous_digest IS NOT NULL);

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
    CONSTRAINT limits_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT limits_api_key_id_fkey FOREIGN KEY (api_key_id) REFERENCES public.api_keys(id),
    CONSTRAINT limits_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT limits_ceiling CHECK (ceiling >= 0),
    CONSTRAINT limits_held CHECK (held >= 0),
    CONSTRAINT limits_period CHECK (
    CASE
        WHEN unit = 'concurrency' THEN period IS NULL
        ELSE period IN ('minute', 'hour', 'day', 'month', 'lifetime')
    END IS TRUE),
    CONSTRAINT limits_raised CHECK ((raised_to IS NULL) = (raised_until IS NULL)),
    CONSTRAINT limits_scope CHECK (scope IN ('organization', 'api_key', 'end_user', 'each_end_user')),
    CONSTRAINT limits_scope_api_key CHECK (scope <> 'api_key' OR api_key_id IS NOT NULL),
    CONSTRAINT limits_scope_end_user CHECK ((scope = 'end_user') = (end_user IS NOT NULL)),
    CONSTRAINT limits_unit CHECK (unit IN ('usd', 'requests', 'tokens', 'concurrency'))
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=100, autovacuum_vacuum_cost_delay=0);
CREATE INDEX limits_id_idx ON public.limits (id);

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
    CONSTRAINT upstream_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT upstream_keys_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT upstream_keys_role CHECK (role IN ('inference', 'admin')),
    CONSTRAINT upstream_keys_sealed_key CHECK ((source = 'database') = (sealed_key IS NOT NULL)),
    CONSTRAINT upstream_keys_source CHECK (source IN ('environment', 'database')),
    CONSTRAINT upstream_keys_status CHECK (status IN ('active', 'set_aside', 'disabled'))
);

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
    overhead_tokens integer,
    overhead_tokens_with_venice_prompt integer,
    deprecation jsonb,
    targets text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT models_pkey PRIMARY KEY (id),
    CONSTRAINT models_version_key UNIQUE NULLS NOT DISTINCT (organization_id, name, version),
    CONSTRAINT models_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id),
    CONSTRAINT models_kind CHECK (kind IN ('venice', 'alias')),
    CONSTRAINT models_name_length CHECK (char_length(name) >= 1 AND char_length(name) <= 200),
    CONSTRAINT models_targets CHECK ((kind = 'alias') = (COALESCE(cardinality(targets), 0) > 0))
);
CREATE UNIQUE INDEX models_current_idx ON public.models (organization_id, name) NULLS NOT DISTINCT WHERE is_current;

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
    CONSTRAINT holds_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT holds_bound_nanos CHECK (bound_nanos >= 0),
    CONSTRAINT holds_bound_tokens CHECK (bound_tokens >= 0)
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=100, autovacuum_vacuum_cost_delay=0);

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
    CONSTRAINT ledger_entries_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT ledger_entries_amends CHECK (kind <> 'correction' OR amends_id IS NOT NULL),
    CONSTRAINT ledger_entries_call CHECK (kind <> 'call' OR api_key_id IS NOT NULL AND outcome IS NOT NULL AND endpoint IS NOT NULL AND request_id IS NOT NULL),
    CONSTRAINT ledger_entries_cost_known CHECK ((cost_source = 'unknown') = (cost_nanos IS NULL)),
    CONSTRAINT ledger_entries_cost_source CHECK (cost_source IN ('reported', 'computed', 'estimated', 'not_charged', 'bound', 'manual', 'unknown')),
    CONSTRAINT ledger_entries_kind CHECK (kind IN ('call', 'correction', 'credit', 'unattributed'))
) PARTITION BY RANGE (id);
CREATE INDEX ledger_entries_amends_id_idx ON ONLY public.ledger_entries (organization_id, amends_id) WHERE (amends_id IS NOT NULL);
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
CREATE TRIGGER audit_events_insert_only BEFORE DELETE OR UPDATE ON public.audit_events FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON public.audit_events FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE OR REPLACE FUNCTION public.make_ledger_partitions(months_ahead integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $function$
DECLARE
    month timestamptz;
    name text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('rialto.ledger_partitions'));
    FOR ahead IN 0 .. months_ahead LOOP
        month := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))
            AT TIME ZONE 'UTC';
        name := 'ledger_entries_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
        IF to_regclass('ledger_partitions.' || name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE ledger_partitions.%I PARTITION OF public.ledger_entries'
                ' FOR VALUES FROM (%L) TO (%L)',
                name,
                public.uuid7_floor(month),
                public.uuid7_floor(
                    (month AT TIME ZONE 'UTC' + make_interval(months => 1)) AT TIME ZONE 'UTC'
                )
            );
            EXECUTE format(
                'CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_partitions.%I'
                ' FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()',
                name
            );
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
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
