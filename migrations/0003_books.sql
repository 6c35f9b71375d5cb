-- The books: limits, the holds of calls in flight, and the insert-only ledger.
--
-- Money is nano-dollars in bigint. holds and ledger_entries have no foreign keys: their checks would
-- lock one hot organization row. limits and holds are updated all the time, hence the room in their
-- pages, no index on a counter (so that updates stay heap-only) and an eager vacuum.
-- depends: 0002_venice

-- A limit binds an organization, a key, or one end user; or it is a template, which binds each end
-- user. The counters of a template, its children, are limits too: admission makes them.
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
    CONSTRAINT limits_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT limits_api_key_id_fkey FOREIGN KEY (api_key_id) REFERENCES public.api_keys (id),
    CONSTRAINT limits_scope CHECK (
        scope IN ('organization', 'api_key', 'end_user', 'each_end_user')
    ),
    CONSTRAINT limits_scope_end_user CHECK ((scope = 'end_user') = (end_user IS NOT NULL)),
    CONSTRAINT limits_scope_api_key CHECK (scope <> 'api_key' OR api_key_id IS NOT NULL),
    CONSTRAINT limits_scope_child CHECK (template_id IS NULL OR scope = 'end_user'),
    CONSTRAINT limits_unit CHECK (unit IN ('usd', 'requests', 'tokens', 'concurrency')),
    CONSTRAINT limits_period CHECK (
        CASE WHEN unit = 'concurrency' THEN period IS NULL
             ELSE period IN ('minute', 'hour', 'day', 'month', 'lifetime') END IS TRUE
    ),
    CONSTRAINT limits_ceiling CHECK (ceiling >= 0),
    CONSTRAINT limits_held CHECK (held >= 0),
    CONSTRAINT limits_raised CHECK ((raised_to IS NULL) = (raised_until IS NULL)),
    CONSTRAINT limits_set_by CHECK (set_by IN ('operator', 'administrator'))
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 100,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX limits_id_idx ON public.limits (id);

CREATE INDEX limits_applying_idx ON public.limits (organization_id, api_key_id, end_user)
    WHERE template_id IS NULL AND deleted_at IS NULL;
CREATE INDEX limits_template_id_idx ON public.limits (template_id) WHERE template_id IS NOT NULL;

COMMENT ON COLUMN public.limits.children IS
    'How many end users have a counter of this template; the shared ones do not count.';
COMMENT ON COLUMN public.limits.set_by IS
    'Who set the ceiling last: the operator, or an administrator of the organization.';

-- settle_and_admit() builds rows of holds and ledger_entries by position: new columns go last.
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
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 100,
    autovacuum_vacuum_cost_delay = 0
);

COMMENT ON COLUMN public.holds.requested_model IS
    'The name by which the caller asked for the model; null where that is the model''s own.';

-- The amounts that an entry counts on limits are requests, tokens and cost_nanos.
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
    CONSTRAINT ledger_entries_kind CHECK (
        kind IN ('call', 'correction', 'credit', 'unattributed')
    ),
    CONSTRAINT ledger_entries_amends CHECK (kind <> 'correction' OR amends_id IS NOT NULL),
    CONSTRAINT ledger_entries_call CHECK (
        kind <> 'call'
        OR (api_key_id IS NOT NULL AND outcome IS NOT NULL AND endpoint IS NOT NULL
            AND request_id IS NOT NULL)
    ),
    CONSTRAINT ledger_entries_cost_source CHECK (
        cost_source IN ('reported', 'computed', 'estimated', 'not_charged', 'bound', 'manual', 'unknown')
    ),
    -- A cost that is not known is recorded as unknown, never as zero.
    CONSTRAINT ledger_entries_cost_known CHECK ((cost_source = 'unknown') = (cost_nanos IS NULL))
) PARTITION BY RANGE (id);

CREATE INDEX ledger_entries_amends_id_idx ON public.ledger_entries (organization_id, amends_id)
    WHERE amends_id IS NOT NULL;
-- Reports, exports and lists choose and order entries by when the database's clock settled them. Ids
-- carry the clocks of many processes, so they do not bound what is read.
CREATE INDEX ledger_entries_counted_idx ON public.ledger_entries (organization_id, counted_at, id);
-- The entry of a queued job is found by the job's id, and the jobs to ask Venice about by their age.
CREATE INDEX ledger_entries_job_idx ON public.ledger_entries (organization_id, upstream_request_id)
    WHERE endpoint LIKE '%/queue';
CREATE INDEX ledger_entries_queued_idx ON public.ledger_entries (counted_at)
    WHERE endpoint LIKE '%/queue';

CREATE TRIGGER ledger_entries_insert_only BEFORE UPDATE OR DELETE ON public.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON public.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE SCHEMA ledger_partitions;

-- A row lands here only when its month has no partition. It is watched, and should stay empty.
CREATE TABLE ledger_partitions.ledger_entries_default PARTITION OF public.ledger_entries DEFAULT;

-- The partitions of this month and of three ahead, so that a first start needs none made. All later
-- ones are made by make_ledger_partition(), which a migration cannot call.
DO $$
DECLARE
    month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    bounds text[];
    name text;
BEGIN
    FOR ahead IN 0 .. 3 LOOP
        name := 'ledger_entries_' || to_char(month, 'YYYY_MM');
        -- The smallest UUIDv7 of the month and of the next: Unix milliseconds, then zeros.
        bounds := ARRAY(
            SELECT rpad(lpad(to_hex(extract(epoch FROM start)::bigint * 1000), 12, '0'), 32, '0')::uuid
            FROM unnest(ARRAY[month, month + interval '1 month']) AS start
        );
        EXECUTE format(
            'CREATE TABLE ledger_partitions.%I PARTITION OF public.ledger_entries'
            ' FOR VALUES FROM (%L) TO (%L)',
            name, bounds[1], bounds[2]
        );
        EXECUTE format(
            'CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_partitions.%I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change()',
            name
        );
        month := month + interval '1 month';
    END LOOP;
END
$$;
