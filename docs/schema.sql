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
    CONSTRAINT limits_scope_child CHECK (template_id IS NULL OR scope = 'end_user'),
    CONSTRAINT limits_scope_end_user CHECK ((scope = 'end_user') = (end_user IS NOT NULL)),
    CONSTRAINT limits_set_by CHECK (set_by IN ('operator', 'administrator')),
    CONSTRAINT limits_unit CHECK (unit IN ('usd', 'requests', 'tokens', 'concurrency'))
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=100, autovacuum_vacuum_cost_delay=0);
CREATE INDEX limits_applying_idx ON public.limits (organization_id, api_key_id, end_user) WHERE ((template_id IS NULL) AND (deleted_at IS NULL));
CREATE INDEX limits_id_idx ON public.limits (id);
CREATE INDEX limits_template_id_idx ON public.limits (template_id) WHERE (template_id IS NOT NULL);
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
    CONSTRAINT holds_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT holds_bound_nanos CHECK (bound_nanos >= 0),
    CONSTRAINT holds_bound_tokens CHECK (bound_tokens >= 0)
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
    CONSTRAINT ledger_entries_amends CHECK (kind <> 'correction' OR amends_id IS NOT NULL),
    CONSTRAINT ledger_entries_call CHECK (kind <> 'call' OR api_key_id IS NOT NULL AND outcome IS NOT NULL AND endpoint IS NOT NULL AND request_id IS NOT NULL),
    CONSTRAINT ledger_entries_cost_known CHECK ((cost_source = 'unknown') = (cost_nanos IS NULL)),
    CONSTRAINT ledger_entries_cost_source CHECK (cost_source IN ('reported', 'computed', 'estimated', 'not_charged', 'bound', 'manual', 'unknown')),
    CONSTRAINT ledger_entries_kind CHECK (kind IN ('call', 'correction', 'credit', 'unattributed'))
) PARTITION BY RANGE (id);
CREATE INDEX ledger_entries_amends_id_idx ON ONLY public.ledger_entries (organization_id, amends_id) WHERE (amends_id IS NOT NULL);
CREATE INDEX ledger_entries_counted_idx ON ONLY public.ledger_entries (organization_id, counted_at, id);
CREATE INDEX ledger_entries_job_idx ON ONLY public.ledger_entries (organization_id, upstream_request_id) WHERE (endpoint ~~ '%/queue');
CREATE INDEX ledger_entries_queued_idx ON ONLY public.ledger_entries (counted_at) WHERE (endpoint ~~ '%/queue');
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

CREATE OR REPLACE FUNCTION public.credit(call_organization_id uuid, call_id uuid, credit_id uuid, credit_nanos bigint, credit_note text)
 RETURNS TABLE(verdict text, left_nanos bigint)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    call public.ledger_entries;
    same public.ledger_entries;
    locked uuid[];
    credited_at timestamptz;
    ids uuid[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
BEGIN
    -- One credit of an organization at a time; before the ledger is touched, as in every change.
    PERFORM FROM public.organizations o WHERE o.id = call_organization_id FOR NO KEY UPDATE;

    SELECT x.* INTO call
    FROM public.ledger_entries x
    WHERE x.organization_id = call_organization_id
      AND x.id = call_id;
    IF call.id IS NULL OR call.kind <> 'call' THEN
        verdict := CASE WHEN call.id IS NULL THEN 'no_call' ELSE 'not_a_call' END;
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.organization_id = call_organization_id
          AND l.id = ANY (call.limit_ids)
          AND l.unit = 'usd'
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    credited_at := clock_timestamp();

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

    SELECT array_agg(l.id), array_agg(l.used - credit_nanos), array_agg(l.held),
           array_agg(l.bucket_s), array_agg(l.window_at), array_agg(l.ring), array_agg(true)
    INTO ids, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, credited_at) l;

    INSERT INTO public.ledger_entries (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, cost_nanos, cost_source, price_version, limit_ids,
        limit_windows, counted_at, tags, note
    )
    VALUES (
        call_organization_id, credit_id, 'credit', call_id, call.api_key_id, call.end_user,
        call.request_id, call.endpoint, call.model, call.requested_model, call.is_stream,
        -credit_nanos, 'manual', call.price_version, call.limit_ids,
        ARRAY(
            SELECT coalesce(windows[array_position(ids, c.limit_id)], c.window_at)
            FROM unnest(call.limit_ids, call.limit_windows)
                WITH ORDINALITY AS c (limit_id, window_at, place)
            ORDER BY c.place
        ),
        credited_at, call.tags, credit_note
    );

    PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
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
            PERFORM set_config('lock_timeout', '100ms', true);
            EXECUTE format('LOCK TABLE ledger_partitions.%I IN ACCESS EXCLUSIVE MODE', name);
            LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', '50ms', true);
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

CREATE OR REPLACE FUNCTION public.limit_is_idle(l public.limits, instant timestamp with time zone)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $function$
    SELECT l.held = 0
       AND CASE
           WHEN l.period IS NULL OR l.used = 0 AND l.buckets IS NULL THEN true
           WHEN l.buckets IS NULL THEN l.window_start < public.limit_window(l.period, instant)
           ELSE l.bucket_at
                < instant - 61 * public.limit_bucket_s(l.unit, l.period) * interval '1 second'
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
    IF bucket_s IS NULL THEN
        RETURN array_fill(0::bigint, ARRAY[61]);
    END IF;
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
 LANGUAGE sql
 STABLE
AS $function$
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.end_user, l.template_id, l.model,
           l.unit, l.period, l.ceiling_now, l.used_now, l.held, l.bucket_s, l.window_at,
           CASE WHEN l.bucket_s IS NULL THEN public.limit_resets_at(l.period, l.window_at)
                ELSE l.window_at + 61 * l.bucket_s * interval '1 second' END,
           l.ring, l.alert_percents_now,
           -- The use at which the next alert is due.
           CASE WHEN l.unit = 'usd' THEN (
               SELECT ceil(min(percent) * nullif(l.ceiling_now, 0)::numeric / 100)::bigint
               FROM unnest(l.alert_percents_now) percent
               WHERE percent > CASE WHEN l.window_start = l.window_at THEN l.alerted_percent
                                    ELSE 0 END
           ) END
    FROM (
        SELECT l.*,
               CASE WHEN l.bucket_s IS NOT NULL THEN (SELECT sum(n) FROM unnest(l.ring) n)::bigint
                    WHEN l.window_start = l.window_at THEN l.used
                    ELSE 0 END AS used_now
        FROM (
            SELECT l.*,
                   CASE WHEN l.bucket_s IS NULL THEN array_fill(0::bigint, ARRAY[61])
                        WHEN l.bucket_at = l.window_at AND l.buckets IS NOT NULL THEN l.buckets
                        ELSE public.limit_ring(l.buckets, l.bucket_at, l.bucket_s, l.window_at)
                        END AS ring
            FROM (
                SELECT l.*,
                       -- A clock that went back stays with what is newest until it has caught up.
                       CASE WHEN l.bucket_s IS NULL
                            THEN greatest(l.window_start, public.limit_window(l.period, instant))
                            ELSE greatest(l.bucket_at, date_bin(
                                l.bucket_s * interval '1 second', instant, 'epoch'
                            )) END AS window_at,
                       CASE WHEN t.ceiling_now IS NOT NULL THEN t.ceiling_now
                            WHEN l.raised_until > instant THEN l.raised_to
                            ELSE l.ceiling END AS ceiling_now,
                       coalesce(t.alert_percents, l.alert_percents) AS alert_percents_now
                FROM (
                    SELECT l.*, public.limit_bucket_s(l.unit, l.period) AS bucket_s
                    FROM public.limits l
                    WHERE l.id = ANY (wanted)
                ) l
                LEFT JOIN LATERAL (
                    SELECT t.alert_percents,
                           CASE WHEN t.raised_until > instant THEN t.raised_to
                                ELSE t.ceiling END AS ceiling_now
                    FROM public.limits t
                    WHERE t.organization_id = l.organization_id
                      AND t.id = l.template_id
                    OFFSET 0  -- by its key, never by a join of all
                ) t ON true
                OFFSET 0  -- so that each of these is computed once
            ) l
            OFFSET 0
        ) l
        OFFSET 0
    ) l
    ORDER BY l.organization_id, l.id
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
    -- In the order in which readers of the ledger lock them.
    LOCK TABLE ONLY public.ledger_entries IN SHARE UPDATE EXCLUSIVE MODE;
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

CREATE OR REPLACE FUNCTION public.refuse_change()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION '% is insert-only: write a new event that amends the old one', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'insert_only';
END
$function$;

CREATE OR REPLACE FUNCTION public.repair_limits(repaired_organization_id uuid, limit_ids uuid[], counters text[], counted timestamp with time zone[], drifts bigint[])
 RETURNS TABLE(limit_id uuid, counter text, window_at timestamp with time zone, stands bigint, proven bigint)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    locked uuid[];
    ids uuid[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
    i integer;
    slot integer;
BEGIN
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.organization_id = repaired_organization_id
          AND l.id = ANY (limit_ids)
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;

    SELECT array_agg(l.id), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
           array_agg(l.window_at), array_agg(l.ring), array_agg(false)
    INTO ids, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, clock_timestamp()) l;

    FOR n IN 1 .. cardinality(limit_ids) LOOP
        i := array_position(ids, limit_ids[n]);
        CONTINUE WHEN i IS NULL;
        limit_id := limit_ids[n];
        counter := counters[n];
        window_at := counted[n];
        IF counters[n] = 'held' THEN
            stands := helds[i];
            helds[i] := stands - drifts[n];
        ELSIF bucket_ss[i] IS NULL THEN
            CONTINUE WHEN windows[i] <> counted[n];
            stands := useds[i];
            useds[i] := stands - drifts[n];
        ELSE
            CONTINUE WHEN counted[n] <= windows[i] - 61 * bucket_ss[i] * interval '1 second';
            slot := extract(epoch FROM counted[n])::bigint / bucket_ss[i] % 61 + 1;
            stands := rings[i][slot];
            rings[i][slot] := stands - drifts[n];
        END IF;
        touched[i] := true;
        proven := stands - drifts[n];
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
END
$function$;

CREATE OR REPLACE FUNCTION public.settle_and_admit(entries jsonb, only_expired boolean, calls jsonb, admitting_process_id uuid, lease interval, most_end_users integer)
 RETURNS TABLE(id uuid, kind text, cost_nanos bigint, bound_nanos bigint, number integer, verdict text, limit_id uuid, scope text, model text, unit text, period text, used bigint, held bigint, ceiling bigint, needed bigint, resets_at timestamp with time zone, retry_after_s integer, granted_nanos bigint, granted_tokens bigint, requests_ceiling bigint, requests_left bigint, requests_reset_s integer, tokens_ceiling bigint, tokens_left bigint, tokens_reset_s integer)
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
 SET lock_timeout TO '1500ms'
AS $function$
#variable_conflict use_column
DECLARE
    ranks CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    decided_at timestamptz;
    -- Of settlements.
    callers uuid[];         -- the organizations
    hold_ids uuid[];
    seen uuid[];
    counted uuid[];         -- the limits that they count on
    interrupted uuid[];
    ended public.holds[];
    ended_ids uuid[];
    earlier public.ledger_entries;
    written public.ledger_entries[] := '{}';
    is_over boolean;
    entry_id uuid;
    amended_id uuid;
    requests integer;
    tokens bigint;
    used_more bigint;
    held_less bigint;
    -- Of admissions.
    wanted uuid[];
    template_ids uuid[];
    template_users bytea[];
    child_ids uuid[];
    left_ids uuid[];        -- the limits that moved calls count on
    call_ids uuid[];
    first_id uuid;
    last_id uuid;
    repeated uuid[];
    moved public.holds;
    taken public.holds[] := '{}';
    taken_ids uuid[];
    taken_windows timestamptz[];
    useds_before bigint[];
    helds_before bigint[];
    rings_before bigint[];
    -- The limits, one place each.
    locked uuid[];
    organization_ids uuid[];
    ids uuid[];
    origins uuid[];         -- the template of a child, else the limit itself
    scopes text[];
    api_key_ids uuid[];
    end_users bytea[];
    models text[];
    units text[];
    periods text[];
    ceilings bigint[];
    useds bigint[];         -- in the window, or in the whole ring
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];  -- the window's start, or the running bucket's
    rings bigint[];
    alerts_at bigint[];
    touched boolean[];
    -- What a turn of a loop is about.
    call record;
    hold public.holds;
    i integer;
    need bigint;
    slot integer;
    running bigint;
    missing bigint;
    rank integer;
    retry_at timestamptz;
    worst_rank integer;
    worst_retry_at timestamptz;
    remaining bigint;
BEGIN
    IF entries IS NOT NULL THEN
        -- Before the limits, as does whoever drops a month.
        LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE;
        callers := public.uuids_of(entries, '$[*].organization_id');
        hold_ids := public.uuids_of(entries, '$[*].id');
        SELECT array_agg(DISTINCT h.id), array_agg(DISTINCT c.limit_id) INTO seen, counted
        FROM public.holds h
        LEFT JOIN LATERAL unnest(h.limit_ids) AS c (limit_id) ON true
        WHERE h.organization_id = ANY (callers)
          AND h.id = ANY (hold_ids);
        IF NOT only_expired AND NOT hold_ids <@ coalesce(seen, '{}') THEN
            -- Ended already, or never begun: if the sweeper ended one, its entry may want a correction.
            SELECT array_agg(DISTINCT x.id), counted || array_agg(DISTINCT c.limit_id)
            INTO interrupted, counted
            FROM public.ledger_entries x
            LEFT JOIN LATERAL unnest(x.limit_ids) AS c (limit_id) ON true
            WHERE x.organization_id = ANY (callers)
              AND x.id = ANY (hold_ids)
              AND x.outcome = 'interrupted'
              AND x.kind = 'call';
        END IF;
    END IF;

    IF calls IS NOT NULL THEN
        SELECT array_agg(DISTINCT l.id) FILTER (WHERE l.scope <> 'each_end_user'),
               array_agg(l.id) FILTER (WHERE l.scope = 'each_end_user'),
               array_agg(c.end_user) FILTER (WHERE l.scope = 'each_end_user')
        INTO wanted, template_ids, template_users
        FROM (
            SELECT DISTINCT c.organization_id, c.api_key_id, coalesce(decode(c.end_user, 'hex'), '')
            FROM jsonb_to_recordset(calls)
                AS c (organization_id uuid, api_key_id uuid, end_user text)
        ) c (organization_id, api_key_id, end_user)
        CROSS JOIN LATERAL (
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
        ) l;
        IF calls @? '$[*].end_user ? (@ != null)' THEN
            -- The limits of one end user alone.
            SELECT wanted || array_agg(DISTINCT l.id) INTO wanted
            FROM (
                SELECT DISTINCT c.organization_id, c.api_key_id, decode(c.end_user, 'hex')
                FROM jsonb_to_recordset(calls)
                    AS c (organization_id uuid, api_key_id uuid, end_user text)
            ) c (organization_id, api_key_id, end_user)
            CROSS JOIN LATERAL (
                SELECT l.id
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id IS NULL
                  AND l.end_user = c.end_user
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
                UNION ALL
                SELECT l.id
                FROM public.limits l
                WHERE l.organization_id = c.organization_id
                  AND l.api_key_id = c.api_key_id
                  AND l.end_user = c.end_user
                  AND l.template_id IS NULL
                  AND l.deleted_at IS NULL
            ) l;
        END IF;
        IF calls @> '[{"is_moved": true}]' THEN
            SELECT array_agg(DISTINCT o.limit_id) INTO left_ids
            FROM jsonb_to_recordset(calls) AS c (organization_id uuid, id uuid, is_moved boolean)
            CROSS JOIN LATERAL (
                SELECT h.limit_ids
                FROM public.holds h
                WHERE h.organization_id = c.organization_id
                  AND h.id = c.id
                OFFSET 0
            ) h
            CROSS JOIN LATERAL unnest(h.limit_ids) AS o (limit_id)
            WHERE c.is_moved;
        END IF;
    END IF;

    LOOP
        IF template_ids IS NOT NULL THEN
            child_ids := public.make_children(template_ids, template_users, most_end_users);
        END IF;
        SELECT array_agg(l.id) INTO locked
        FROM (
            SELECT l.id
            FROM public.limits l
            WHERE l.id = ANY (counted || wanted || child_ids || left_ids)
            ORDER BY l.organization_id, l.id
            FOR NO KEY UPDATE
        ) l;
        -- A counter that was idle may have been swept before its lock was taken: it is made again.
        EXIT WHEN child_ids IS NULL OR child_ids <@ locked;
    END LOOP;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();

    IF locked IS NOT NULL THEN
        SELECT array_agg(l.organization_id), array_agg(l.id),
               array_agg(coalesce(l.template_id, l.id)), array_agg(l.scope),
               array_agg(l.api_key_id), array_agg(l.end_user), array_agg(l.model),
               array_agg(l.unit), array_agg(l.period), array_agg(l.ceiling), array_agg(l.used),
               array_agg(l.held), array_agg(l.bucket_s), array_agg(l.window_at),
               array_agg(l.ring), array_agg(l.alert_at), array_agg(false)
        INTO organization_ids, ids, origins, scopes, api_key_ids, end_users, models, units, periods,
             ceilings, useds, helds, bucket_ss, windows, rings, alerts_at, touched
        FROM public.limits_as_of(locked, decided_at) l;
    END IF;

    IF entries IS NOT NULL THEN
        IF seen IS NOT NULL THEN
            -- A hold that was taken after the locks were is left for the next time.
            WITH gone AS (
                DELETE FROM public.holds h
                WHERE h.organization_id = ANY (callers)
                  AND h.id = ANY (seen)
                  AND h.organization_id = callers[array_position(hold_ids, h.id)]
                  AND (NOT only_expired OR h.lease_until < decided_at)
                  AND h.limit_ids <@ coalesce(counted, '{}')
                RETURNING h AS hold
            )
            SELECT array_agg(g.hold), array_agg((g.hold).id) INTO ended, ended_ids FROM gone g;
            IF NOT seen <@ coalesce(ended_ids, '{}') AND EXISTS (
                SELECT
                FROM public.holds h
                WHERE h.organization_id = ANY (callers)
                  AND h.id = ANY (seen)
                  AND NOT h.limit_ids <@ coalesce(counted, '{}')
                  AND (NOT only_expired OR h.lease_until < decided_at)
            ) THEN
                -- It was moved since its limits were read: all of the batch is done again.
                RAISE EXCEPTION 'a hold was moved' USING ERRCODE = 'serialization_failure';
            END IF;
        END IF;
        FOR call IN
            SELECT e.*
            FROM jsonb_to_recordset(entries) AS e (
                organization_id uuid, id uuid, correction_id uuid, model text, outcome text,
                status smallint, input_tokens bigint, cached_input_tokens bigint,
                output_tokens bigint, cost_nanos bigint, cost_source text, upstream_key_id uuid,
                upstream_request_id text, first_byte_ms integer, duration_ms integer
            )
        LOOP
            i := array_position(ended_ids, call.id);
            is_over := false;
            IF i IS NOT NULL THEN
                hold := ended[i];
                ended_ids[i] := NULL;
                kind := 'call';
                entry_id := hold.id;
                amended_id := NULL;
                IF only_expired THEN
                    -- A late repetition of an admission can just miss that the call is over.
                    is_over := EXISTS (
                        SELECT
                        FROM public.ledger_entries x
                        WHERE x.organization_id = hold.organization_id AND x.id = hold.id
                    );
                END IF;
                IF is_over THEN
                    call.cost_nanos := 0;
                ELSIF call.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
                    call.cost_nanos := hold.bound_nanos;
                    call.cost_source := 'bound';
                ELSIF call.cost_source = 'estimated' THEN
                    call.cost_nanos := least(call.cost_nanos, hold.bound_nanos);
                END IF;
                requests := CASE WHEN is_over THEN 0 ELSE 1 END;
                tokens := CASE
                    WHEN is_over OR call.cost_source = 'not_charged' THEN 0
                    ELSE coalesce(call.input_tokens + call.output_tokens, hold.bound_tokens, 0)
                END;
            ELSE
                -- What is no better known than before needs no correction.
                CONTINUE WHEN only_expired OR call.cost_nanos IS NULL;
                SELECT x.* INTO earlier
                FROM public.ledger_entries x
                WHERE x.organization_id = call.organization_id
                  AND x.id = call.id
                  AND x.outcome = 'interrupted'
                  AND (x.id = ANY (interrupted) OR x.id = ANY (seen))
                  AND NOT EXISTS (
                      SELECT
                      FROM public.ledger_entries y
                      WHERE y.organization_id = x.organization_id
                        AND y.amends_id = x.id
                        AND y.kind = 'correction'
                  );
                CONTINUE WHEN NOT FOUND;
                kind := 'correction';
                entry_id := call.correction_id;
                amended_id := earlier.id;
                hold := NULL;
                hold.organization_id := earlier.organization_id;
                hold.id := earlier.id;
                hold.api_key_id := earlier.api_key_id;
                hold.end_user := earlier.end_user;
                hold.request_id := earlier.request_id;
                hold.endpoint := earlier.endpoint;
                hold.requested_model := earlier.requested_model;
                hold.is_stream := earlier.is_stream;
                hold.bound_nanos := earlier.bound_nanos;
                hold.bound_tokens := earlier.bound_tokens;
                hold.limit_ids := earlier.limit_ids;
                hold.limit_windows := earlier.limit_windows;
                hold.price_version := earlier.price_version;
                hold.upstream_key_id := earlier.upstream_key_id;
                hold.tags := earlier.tags;
                requests := 0;
                tokens := CASE
                    WHEN call.cost_source = 'not_charged' THEN 0
                    ELSE coalesce(call.input_tokens + call.output_tokens, earlier.tokens)
                END - earlier.tokens;
                call.cost_nanos := call.cost_nanos - coalesce(earlier.cost_nanos, 0);
                call.input_tokens := call.input_tokens - coalesce(earlier.input_tokens, 0);
                call.output_tokens := call.output_tokens - coalesce(earlier.output_tokens, 0);
            END IF;

            FOR n IN 1 .. cardinality(hold.limit_ids) LOOP
                i := array_position(ids, hold.limit_ids[n]);
                CONTINUE WHEN i IS NULL;
                touched[i] := true;
                used_more := CASE units[i] WHEN 'usd' THEN call.cost_nanos
                                           WHEN 'tokens' THEN tokens
                                           WHEN 'requests' THEN requests
                                           ELSE 0 END;
                held_less := CASE WHEN kind = 'correction' THEN 0
                                  WHEN units[i] = 'usd' THEN hold.bound_nanos
                                  WHEN units[i] = 'tokens' THEN hold.bound_tokens
                                  ELSE 1 END;
                IF bucket_ss[i] IS NULL THEN
                    useds[i] := useds[i] + used_more;
                    helds[i] := helds[i] - held_less;
                    hold.limit_windows[n] := windows[i];
                ELSIF hold.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second' THEN
                    -- Counted in full when it was admitted; what was not used is given back there.
                    slot := extract(epoch FROM hold.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                    rings[i][slot] := rings[i][slot] + used_more - held_less;
                    useds[i] := useds[i] + used_more - held_less;
                END IF;
            END LOOP;
            CONTINUE WHEN is_over;

            -- As the columns of the table stand.
            written := written || ROW(
                hold.organization_id, entry_id, kind, amended_id, hold.api_key_id, hold.end_user,
                hold.request_id, hold.endpoint, call.model, coalesce(hold.requested_model, hold.model),
                hold.is_stream, call.outcome, call.status, requests, call.input_tokens,
                call.cached_input_tokens, call.output_tokens, call.cost_nanos, call.cost_source,
                hold.bound_nanos, hold.bound_tokens, hold.price_version, hold.limit_ids,
                hold.limit_windows, decided_at, coalesce(call.upstream_key_id, hold.upstream_key_id),
                coalesce(call.upstream_request_id, hold.upstream_request_id), call.first_byte_ms,
                call.duration_ms, hold.tags, NULL, decided_at, tokens
            )::public.ledger_entries;
            id := hold.id;
            cost_nanos := call.cost_nanos;
            bound_nanos := hold.bound_nanos;
            RETURN NEXT;
        END LOOP;
        INSERT INTO public.ledger_entries SELECT e.* FROM unnest(written) e;
        FOR n IN 1 .. coalesce(cardinality(ids), 0) LOOP
            IF useds[n] >= alerts_at[n] AND touched[n] THEN
                id := ids[n];
                kind := 'alert';
                cost_nanos := NULL;
                bound_nanos := NULL;
                RETURN NEXT;
            END IF;
        END LOOP;
        id := NULL;
        kind := NULL;
    END IF;

    IF calls IS NOT NULL THEN
        -- An admission whose connection broke is repeated, and the server may come to the first
        -- statement when the call is long over.
        callers := public.uuids_of(calls, '$[*].organization_id');
        call_ids := public.uuids_of(calls, '$[*].id');
        FOREACH entry_id IN ARRAY call_ids LOOP
            first_id := least(first_id, entry_id);
            last_id := greatest(last_id, entry_id);
        END LOOP;
        SELECT array_agg(known.id) INTO repeated
        FROM (
            SELECT h.id
            FROM public.holds h
            WHERE h.organization_id = ANY (callers)
              AND h.id = ANY (call_ids)
            UNION ALL
            SELECT x.id
            FROM public.ledger_entries x
            WHERE x.organization_id = ANY (callers)
              AND x.id = ANY (call_ids)
              -- No other months are looked at.
              AND x.id BETWEEN first_id AND last_id
        ) known;
        FOR call IN
            SELECT c.*,
                   c.id = ANY (repeated) AS is_repeated,
                   coalesce((
                       SELECT CASE
                           WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                           WHEN k.expires_at <= decided_at THEN 'expired_api_key'
                           WHEN o.status <> 'active' THEN 'organization_inactive'
                           ELSE 'admitted'
                       END
                       FROM public.api_keys k
                       JOIN public.organizations o ON o.id = k.organization_id
                       WHERE k.id = c.api_key_id AND k.organization_id = c.organization_id
                   ), 'invalid_api_key') AS standing,
                   ARRAY(
                       SELECT l.place::integer
                       FROM unnest(ids, organization_ids, api_key_ids, end_users, models, scopes)
                           WITH ORDINALITY AS l (
                               id, organization_id, api_key_id, end_user, model, scope, place
                           )
                       WHERE l.organization_id = c.organization_id
                         AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
                         AND (l.model IS NULL OR l.model IN (c.model, split_part(c.model, ':', 1)))
                         -- The end user's own limits, and the templates' counters for them.
                         AND CASE
                             WHEN l.scope <> 'end_user' THEN l.id = ANY (wanted)
                             WHEN l.id = ANY (wanted) THEN l.end_user = decode(c.end_user, 'hex')
                             ELSE l.id = ANY (own.child_ids)
                         END
                       ORDER BY l.place
                   ) AS places
            FROM ROWS FROM (
                jsonb_to_recordset(calls) AS (
                    organization_id uuid, id uuid, api_key_id uuid, end_user text, request_id text,
                    endpoint text, model text, is_stream boolean, bound_nanos bigint,
                    bound_tokens bigint, least_nanos bigint, least_tokens bigint,
                    requested_model text, price_version integer, tags jsonb, is_moved boolean
                )
            ) WITH ORDINALITY AS c (
                organization_id, id, api_key_id, end_user, request_id, endpoint, model, is_stream,
                bound_nanos, bound_tokens, least_nanos, least_tokens, requested_model,
                price_version, tags, is_moved, place
            )
            CROSS JOIN LATERAL (
                SELECT CASE WHEN child_ids IS NOT NULL THEN ARRAY(
                    SELECT p.child_id
                    FROM unnest(template_users, child_ids) AS p (end_user, child_id)
                    WHERE p.end_user = coalesce(decode(c.end_user, 'hex'), '')
                ) END AS child_ids
            ) own
            ORDER BY c.place
        LOOP
            number := call.place;
            IF call.is_moved THEN
                SELECT h.* INTO moved
                FROM public.holds h
                WHERE h.organization_id = call.organization_id AND h.id = call.id;
                call.is_repeated := false;
            END IF;
            verdict := CASE WHEN call.is_moved AND moved.id IS NULL THEN 'not_held'
                            WHEN call.is_repeated THEN 'admitted'
                            ELSE call.standing END;
            limit_id := NULL;
            resets_at := NULL;
            retry_after_s := NULL;
            granted_nanos := call.bound_nanos;
            granted_tokens := call.bound_tokens;
            requests_left := NULL;
            tokens_left := NULL;
            IF call.is_repeated OR verdict <> 'admitted' THEN
                IF call.is_repeated THEN
                    SELECT h.bound_nanos, h.bound_tokens INTO granted_nanos, granted_tokens
                    FROM public.holds h
                    WHERE h.organization_id = call.organization_id AND h.id = call.id;
                END IF;
                RETURN NEXT;
                CONTINUE;
            END IF;

            IF call.is_moved THEN
                useds_before := useds;
                helds_before := helds;
                rings_before := rings;
                FOR n IN 1 .. cardinality(moved.limit_ids) LOOP
                    i := array_position(ids, moved.limit_ids[n]);
                    CONTINUE WHEN i IS NULL;
                    touched[i] := true;
                    need := CASE units[i] WHEN 'usd' THEN moved.bound_nanos
                                          WHEN 'tokens' THEN moved.bound_tokens
                                          ELSE 1 END;
                    IF bucket_ss[i] IS NULL THEN
                        helds[i] := helds[i] - need;
                    ELSIF moved.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second'
                    THEN
                        slot := extract(epoch FROM moved.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                        rings[i][slot] := rings[i][slot] - need;
                        useds[i] := useds[i] - need;
                    END IF;
                END LOOP;
            END IF;

            IF call.least_tokens IS NOT NULL THEN
                FOREACH i IN ARRAY call.places LOOP
                    remaining := ceilings[i] - useds[i] - helds[i];
                    -- A bound that is not known stays unknown, whatever is left.
                    IF units[i] = 'usd' AND call.bound_nanos IS NOT NULL THEN
                        granted_nanos := least(granted_nanos, greatest(remaining, call.least_nanos));
                    ELSIF units[i] = 'tokens' THEN
                        granted_tokens := least(granted_tokens, greatest(remaining, call.least_tokens));
                    END IF;
                END LOOP;
            END IF;

            worst_rank := 0;
            FOREACH i IN ARRAY call.places LOOP
                need := CASE units[i] WHEN 'usd' THEN granted_nanos
                                      WHEN 'tokens' THEN granted_tokens
                                      ELSE 1 END;
                CONTINUE WHEN useds[i] + helds[i] + need <= ceilings[i];
                retry_at := NULL;
                IF need IS NULL THEN
                    rank := 4;
                ELSIF units[i] = 'usd' THEN
                    rank := CASE WHEN useds[i] + need > ceilings[i] THEN 3 ELSE 1 END;
                ELSE
                    rank := 2;
                END IF;
                IF rank > 2 OR need > ceilings[i] THEN
                    retry_at := 'infinity';
                ELSIF bucket_ss[i] IS NOT NULL THEN
                    -- When the bucket has gone by that makes room enough.
                    missing := useds[i] + need - ceilings[i];
                    running := extract(epoch FROM windows[i])::bigint / bucket_ss[i];
                    FOR bucket IN running - 60 .. running LOOP
                        missing := missing - rings[i][bucket % 61 + 1];
                        retry_at := to_timestamp((bucket + 61) * bucket_ss[i]);
                        EXIT WHEN missing <= 0;
                    END LOOP;
                ELSIF useds[i] + need > ceilings[i] THEN
                    retry_at := coalesce(
                        public.limit_resets_at(periods[i], windows[i]), 'infinity'
                    );
                ELSE
                    -- Only what others hold stands in the way.
                    retry_at := decided_at + interval '1 second';
                END IF;
                IF rank > worst_rank OR rank = worst_rank AND retry_at > worst_retry_at THEN
                    worst_rank := rank;
                    worst_retry_at := retry_at;
                    verdict := ranks[rank];
                    limit_id := origins[i];
                    scope := scopes[i];
                    model := models[i];
                    unit := units[i];
                    period := periods[i];
                    used := useds[i];
                    held := helds[i];
                    ceiling := ceilings[i];
                    needed := need;
                    resets_at := CASE WHEN bucket_ss[i] IS NULL
                                      THEN public.limit_resets_at(periods[i], windows[i]) END;
                    retry_after_s := ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
                END IF;
            END LOOP;

            IF verdict = 'admitted' THEN
                taken_ids := '{}';
                taken_windows := '{}';
                FOREACH i IN ARRAY call.places LOOP
                    need := CASE units[i] WHEN 'usd' THEN granted_nanos
                                          WHEN 'tokens' THEN granted_tokens
                                          ELSE 1 END;
                    touched[i] := true;
                    taken_ids := taken_ids || ids[i];
                    taken_windows := taken_windows || windows[i];
                    IF bucket_ss[i] IS NULL THEN
                        helds[i] := helds[i] + need;
                    ELSE
                        slot := extract(epoch FROM windows[i])::bigint / bucket_ss[i] % 61 + 1;
                        rings[i][slot] := rings[i][slot] + need;
                        useds[i] := useds[i] + need;
                    END IF;
                END LOOP;
                IF call.is_moved THEN
                    -- In its place, so that a settlement that waits for the row finds what it became.
                    UPDATE public.holds h
                    SET model = call.model,
                        is_stream = call.is_stream,
                        bound_nanos = granted_nanos,
                        bound_tokens = granted_tokens,
                        limit_ids = taken_ids,
                        limit_windows = taken_windows,
                        lease_until = decided_at + lease,
                        requested_model = call.requested_model,
                        price_version = call.price_version
                    WHERE h.organization_id = call.organization_id
                      AND h.id = call.id;
                ELSE
                    -- As the columns of the table stand.
                    taken := taken || ROW(
                        call.organization_id, call.id, call.api_key_id, decode(call.end_user, 'hex'),
                        call.request_id, call.endpoint, call.model, call.is_stream, granted_nanos,
                        granted_tokens, taken_ids, taken_windows, admitting_process_id,
                        decided_at + lease, call.price_version, NULL, NULL, call.tags, decided_at,
                        call.requested_model
                    )::public.holds;
                END IF;
            ELSIF call.is_moved THEN
                useds := useds_before;
                helds := helds_before;
                rings := rings_before;
            END IF;

            -- The tightest rates of the caller, as they stand after this call.
            FOREACH i IN ARRAY call.places LOOP
                CONTINUE WHEN units[i] NOT IN ('requests', 'tokens');
                remaining := greatest(0, ceilings[i] - useds[i] - helds[i]);
                retry_at := CASE WHEN bucket_ss[i] IS NULL
                                 THEN public.limit_resets_at(periods[i], windows[i])
                                 ELSE windows[i] + 61 * bucket_ss[i] * interval '1 second' END;
                IF units[i] = 'requests' AND remaining < coalesce(requests_left, remaining + 1) THEN
                    requests_ceiling := ceilings[i];
                    requests_left := remaining;
                    requests_reset_s := ceil(extract(epoch FROM retry_at - decided_at));
                ELSIF units[i] = 'tokens' AND remaining < coalesce(tokens_left, remaining + 1) THEN
                    tokens_ceiling := ceilings[i];
                    tokens_left := remaining;
                    tokens_reset_s := ceil(extract(epoch FROM retry_at - decided_at));
                END IF;
            END LOOP;
            RETURN NEXT;
        END LOOP;
        INSERT INTO public.holds SELECT h.* FROM unnest(taken) h;
    END IF;

    IF true = ANY (touched) THEN
        PERFORM public.write_limits(ids, useds, helds, bucket_ss, windows, rings, touched);
    END IF;
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
          AND (t.deleted_at IS NOT NULL OR public.limit_is_idle(l, clock_timestamp()))
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

CREATE OR REPLACE FUNCTION public.uuids_of(document jsonb, path jsonpath)
 RETURNS uuid[]
 LANGUAGE sql
 STABLE
AS $function$
    SELECT translate(jsonb_path_query_array(document, path)::text, '[]"', '{}')::uuid[]
$function$;

CREATE OR REPLACE FUNCTION public.write_limits(ids uuid[], useds bigint[], helds bigint[], bucket_ss integer[], windows timestamp with time zone[], rings bigint[], touched boolean[])
 RETURNS void
 LANGUAGE plpgsql
 SET enable_seqscan TO 'off'
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
BEGIN
    UPDATE public.limits l
    SET held = n.held,
        used = CASE WHEN n.bucket_s IS NULL THEN n.used ELSE l.used END,
        carried = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at THEN l.carried
                       ELSE 0 END,
        alerted_percent = CASE WHEN n.bucket_s IS NOT NULL OR l.window_start = n.window_at
                               THEN l.alerted_percent
                               ELSE 0 END,
        window_start = CASE WHEN n.bucket_s IS NULL THEN n.window_at ELSE l.window_start END,
        -- Number by number: a slice would copy all rings each time.
        buckets = CASE WHEN n.bucket_s IS NULL THEN l.buckets
                       ELSE ARRAY(SELECT rings[n.place][at] FROM generate_series(1, 61) at) END,
        bucket_at = CASE WHEN n.bucket_s IS NULL THEN l.bucket_at ELSE n.window_at END
    FROM unnest(ids, useds, helds, bucket_ss, windows, touched)
        WITH ORDINALITY AS n (id, used, held, bucket_s, window_at, is_touched, place)
    WHERE l.id = n.id
      AND n.is_touched;
END
$function$;
