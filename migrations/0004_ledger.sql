-- Limits, the holds on them, and the insert-only ledger. Money is nano-dollars in bigint.
-- holds and ledger_entries have no foreign keys: their checks would lock one hot organization row.
-- limits and holds are updated all the time, hence the room in their pages, no index on a counter
-- (so that updates stay heap-only) and an eager vacuum.
-- depends: 0001_accounts

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
    CONSTRAINT limits_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT limits_api_key_id_fkey FOREIGN KEY (api_key_id) REFERENCES public.api_keys (id),
    CONSTRAINT limits_scope CHECK (
        scope IN ('organization', 'api_key', 'end_user', 'each_end_user')
    ),
    CONSTRAINT limits_scope_end_user CHECK ((scope = 'end_user') = (end_user IS NOT NULL)),
    CONSTRAINT limits_scope_api_key CHECK (scope <> 'api_key' OR api_key_id IS NOT NULL),
    CONSTRAINT limits_unit CHECK (unit IN ('usd', 'requests', 'tokens', 'concurrency')),
    CONSTRAINT limits_period CHECK (
        CASE WHEN unit = 'concurrency' THEN period IS NULL
             ELSE period IN ('minute', 'hour', 'day', 'month', 'lifetime') END IS TRUE
    ),
    CONSTRAINT limits_ceiling CHECK (ceiling >= 0),
    CONSTRAINT limits_held CHECK (held >= 0),
    CONSTRAINT limits_raised CHECK ((raised_to IS NULL) = (raised_until IS NULL))
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 100,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX limits_id_idx ON public.limits (id);

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
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 100,
    autovacuum_vacuum_cost_delay = 0
);

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

CREATE SCHEMA ledger_partitions;

-- A row lands here only when its month was never made: it is watched, and should stay empty.
CREATE TABLE ledger_partitions.ledger_entries_default PARTITION OF public.ledger_entries DEFAULT;

CREATE FUNCTION public.refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert-only: write a new event that amends the old one', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'insert_only';
END
$$;

CREATE TRIGGER ledger_entries_insert_only BEFORE UPDATE OR DELETE ON public.ledger_entries
    FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON public.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

-- The smallest UUIDv7 of an instant: 48 bits of Unix milliseconds, then zeros.
CREATE FUNCTION public.uuid7_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (
        lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '00000000000000000000'
    )::uuid
$$;

-- Makes the partitions of this month and of the months ahead, as far as they are missing.
-- The advisory lock keeps replicas that start together from racing for the same name.
CREATE FUNCTION public.make_ledger_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql AS $$
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
$$;

DO $$ BEGIN PERFORM public.make_ledger_partitions(3); END $$;
