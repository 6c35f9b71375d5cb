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
CREATE INDEX limits_organization_id_idx ON public.limits (organization_id) WHERE ((template_id IS NULL) AND (deleted_at IS NULL));

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
    tokens bigint NOT NULL DEFAULT 0,
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

CREATE OR REPLACE FUNCTION public.admit(calls jsonb, admitting_process_id uuid, lease interval)
 RETURNS TABLE(number integer, verdict text, limit_id uuid, scope text, model text, unit text, period text, used bigint, held bigint, ceiling bigint, needed bigint, resets_at timestamp with time zone, retry_after_s integer, requests_ceiling bigint, requests_left bigint, requests_reset_s integer, tokens_ceiling bigint, tokens_left bigint, tokens_reset_s integer)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    ranks CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    decided_at timestamptz;
    locked uuid[];
    -- The limits, one place each.
    organization_ids uuid[];
    ids uuid[];
    scopes text[];
    api_key_ids uuid[];
    models text[];
    units text[];
    periods text[];
    ceilings bigint[];
    useds bigint[];         -- in the window, or in the whole ring
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];  -- the window's start, or the running bucket's
    resets timestamptz[];   -- the window's end, or when the running bucket has gone by
    rings bigint[];
    touched boolean[];
    call record;
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
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE l.template_id IS NULL
          AND l.deleted_at IS NULL
          AND l.organization_id IN (
              SELECT (c ->> 'organization_id')::uuid FROM jsonb_array_elements(calls) c
          )
          AND (
              l.scope = 'organization'
              OR l.scope = 'api_key'
              AND l.api_key_id IN (
                  SELECT (c ->> 'api_key_id')::uuid FROM jsonb_array_elements(calls) c
              )
          )
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    -- The wait for the locks is over: what is decided is decided as of now.
    decided_at := clock_timestamp();

    SELECT array_agg(l.organization_id), array_agg(l.id), array_agg(l.scope),
           array_agg(l.api_key_id), array_agg(l.model), array_agg(l.unit), array_agg(l.period),
           array_agg(l.ceiling), array_agg(l.used), array_agg(l.held), array_agg(l.bucket_s),
           array_agg(l.window_at), array_agg(l.resets_at), array_agg(l.ring), array_agg(false)
    INTO organization_ids, ids, scopes, api_key_ids, models, units, periods, ceilings, useds,
         helds, bucket_ss, windows, resets, rings, touched
    FROM public.limits_as_of(locked, decided_at) l;

    FOR call IN
        SELECT c.*, h.id IS NOT NULL AS is_repeated,
               CASE
                   WHEN k.id IS NULL THEN 'invalid_api_key'
                   WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
                   WHEN k.expires_at <= decided_at THEN 'expired_api_key'
                   WHEN o.status <> 'active' THEN 'organization_inactive'
                   ELSE 'admitted'
               END AS standing,
               coalesce(applying.places, '{}') AS places
        FROM ROWS FROM (
            jsonb_to_recordset(calls) AS (
                organization_id uuid, id uuid, api_key_id uuid, request_id text, endpoint text,
                model text, is_stream boolean, bound_nanos bigint, bound_tokens bigint,
                price_version integer, tags jsonb
            )
        ) WITH ORDINALITY AS c (
            organization_id, id, api_key_id, request_id, endpoint, model, is_stream, bound_nanos,
            bound_tokens, price_version, tags, place
        )
        LEFT JOIN public.holds h ON h.organization_id = c.organization_id AND h.id = c.id
        LEFT JOIN public.api_keys k
            ON k.id = c.api_key_id AND k.organization_id = c.organization_id
        LEFT JOIN public.organizations o ON o.id = c.organization_id
        LEFT JOIN LATERAL (
            SELECT array_agg(l.place::integer ORDER BY l.place) AS places
            FROM unnest(organization_ids, api_key_ids, models)
                WITH ORDINALITY AS l (organization_id, api_key_id, model, place)
            WHERE l.organization_id = c.organization_id
              AND (l.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
              AND (l.model IS NULL OR l.model IN (c.model, split_part(c.model, ':', 1)))
        ) applying ON true
        ORDER BY c.place
    LOOP
        number := call.place;
        verdict := CASE WHEN call.is_repeated THEN 'admitted' ELSE call.standing END;
        limit_id := NULL;
        resets_at := NULL;
        retry_after_s := NULL;
        requests_left := NULL;
        tokens_left := NULL;
        IF call.is_repeated OR verdict <> 'admitted' THEN
            RETURN NEXT;
            CONTINUE;
        END IF;

        worst_rank := 0;
        FOREACH i IN ARRAY call.places LOOP
            need := CASE units[i] WHEN 'usd' THEN call.bound_nanos
                                  WHEN 'tokens' THEN call.bound_tokens
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
                retry_at := coalesce(resets[i], 'infinity');
            ELSE
                -- Only what others hold stands in the way.
                retry_at := decided_at + interval '1 second';
            END IF;
            IF rank > worst_rank OR rank = worst_rank AND retry_at > worst_retry_at THEN
                worst_rank := rank;
                worst_retry_at := retry_at;
                verdict := ranks[rank];
                limit_id := ids[i];
                scope := scopes[i];
                model := models[i];
                unit := units[i];
                period := periods[i];
                used := useds[i];
                held := helds[i];
                ceiling := ceilings[i];
                needed := need;
                resets_at := CASE WHEN bucket_ss[i] IS NULL THEN resets[i] END;
                retry_after_s := ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
            END IF;
        END LOOP;

        IF verdict = 'admitted' THEN
            FOREACH i IN ARRAY call.places LOOP
                need := CASE units[i] WHEN 'usd' THEN call.bound_nanos
                                      WHEN 'tokens' THEN call.bound_tokens
                                      ELSE 1 END;
                touched[i] := true;
                IF bucket_ss[i] IS NULL THEN
                    helds[i] := helds[i] + need;
                ELSE
                    slot := extract(epoch FROM windows[i])::bigint / bucket_ss[i] % 61 + 1;
                    rings[i][slot] := rings[i][slot] + need;
                    useds[i] := useds[i] + need;
                END IF;
            END LOOP;
            INSERT INTO public.holds (
                organization_id, id, api_key_id, request_id, endpoint, model, is_stream,
                bound_nanos, bound_tokens, price_version, tags, limit_ids, limit_windows,
                process_id, lease_until
            )
            VALUES (
                call.organization_id, call.id, call.api_key_id, call.request_id, call.endpoint,
                call.model, call.is_stream, call.bound_nanos, call.bound_tokens,
                call.price_version, call.tags,
                ARRAY(SELECT ids[place] FROM unnest(call.places) WITH ORDINALITY p (place, n)
                      ORDER BY n),
                ARRAY(SELECT windows[place] FROM unnest(call.places) WITH ORDINALITY p (place, n)
                      ORDER BY n),
                admitting_process_id, decided_at + lease
            );
        END IF;

        -- The tightest rates of the caller, as they stand after this call.
        FOREACH i IN ARRAY call.places LOOP
            remaining := greatest(0, ceilings[i] - useds[i] - helds[i]);
            IF units[i] = 'requests' AND remaining < coalesce(requests_left, remaining + 1) THEN
                requests_ceiling := ceilings[i];
                requests_left := remaining;
                requests_reset_s := ceil(extract(epoch FROM resets[i] - decided_at));
            ELSIF units[i] = 'tokens' AND remaining < coalesce(tokens_left, remaining + 1) THEN
                tokens_ceiling := ceilings[i];
                tokens_left := remaining;
                tokens_reset_s := ceil(extract(epoch FROM resets[i] - decided_at));
            END IF;
        END LOOP;
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(
        organization_ids, ids, useds, helds, bucket_ss, windows, rings, touched
    );
END
$function$;

CREATE OR REPLACE FUNCTION public.limit_bucket_s(unit text, period text)
 RETURNS integer
 LANGUAGE sql
 IMMUTABLE
AS $function$
    SELECT CASE WHEN unit IN ('requests', 'tokens')
                THEN CASE period WHEN 'minute' THEN 1 WHEN 'hour' THEN 60 END END
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

CREATE OR REPLACE FUNCTION public.limits_as_of(locked uuid[], instant timestamp with time zone)
 RETURNS TABLE(organization_id uuid, id uuid, scope text, api_key_id uuid, model text, unit text, period text, ceiling bigint, used bigint, held bigint, bucket_s integer, window_at timestamp with time zone, resets_at timestamp with time zone, ring bigint[])
 LANGUAGE sql
 STABLE
AS $function$
    SELECT l.organization_id, l.id, l.scope, l.api_key_id, l.model, l.unit, l.period,
           CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END,
           CASE WHEN l.bucket_s IS NOT NULL THEN (SELECT sum(n) FROM unnest(l.ring) n)::bigint
                WHEN l.window_start = l.window_at THEN l.used
                ELSE 0 END,
           l.held, l.bucket_s, l.window_at,
           CASE WHEN l.bucket_s IS NULL THEN public.limit_resets_at(l.period, l.window_at)
                ELSE l.window_at + 61 * l.bucket_s * interval '1 second' END,
           l.ring
    FROM (
        SELECT l.*, public.limit_ring(l.buckets, l.bucket_at, l.bucket_s, l.window_at) AS ring
        FROM (
            SELECT l.*,
                   -- A clock that went back stays with what is newest until it has caught up.
                   CASE WHEN l.bucket_s IS NULL
                        THEN greatest(l.window_start, public.limit_window(l.period, instant))
                        ELSE greatest(l.bucket_at, date_bin(
                            l.bucket_s * interval '1 second', instant, 'epoch'
                        )) END AS window_at
            FROM (
                SELECT l.*, public.limit_bucket_s(l.unit, l.period) AS bucket_s
                FROM public.limits l
                WHERE l.id = ANY (locked)
            ) l
        ) l
    ) l
    ORDER BY l.organization_id, l.id
$function$;

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

CREATE OR REPLACE FUNCTION public.settle(entries jsonb)
 RETURNS TABLE(id uuid, kind text, cost_nanos bigint, bound_nanos bigint)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    settled_at timestamptz;
    locked uuid[];
    organization_ids uuid[];
    ids uuid[];
    units text[];
    useds bigint[];
    helds bigint[];
    bucket_ss integer[];
    windows timestamptz[];
    rings bigint[];
    touched boolean[];
    entry record;
    hold public.holds;
    earlier public.ledger_entries;
    counted_tokens bigint;
    counted_windows timestamptz[];
    used_more bigint;
    held_less bigint;
    i integer;
    slot integer;
BEGIN
    SELECT array_agg(l.id) INTO locked
    FROM (
        SELECT l.id
        FROM public.limits l
        WHERE (l.organization_id, l.id) IN (
            SELECT h.organization_id, unnest(h.limit_ids)
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            JOIN public.holds h USING (organization_id, id)
            UNION
            SELECT x.organization_id, unnest(x.limit_ids)
            FROM jsonb_to_recordset(entries) AS e (organization_id uuid, id uuid)
            JOIN public.ledger_entries x USING (organization_id, id)
            WHERE x.outcome = 'interrupted'
        )
        ORDER BY l.organization_id, l.id
        FOR NO KEY UPDATE
    ) l;
    settled_at := clock_timestamp();

    SELECT array_agg(l.organization_id), array_agg(l.id), array_agg(l.unit), array_agg(l.used),
           array_agg(l.held), array_agg(l.bucket_s), array_agg(l.window_at), array_agg(l.ring),
           array_agg(false)
    INTO organization_ids, ids, units, useds, helds, bucket_ss, windows, rings, touched
    FROM public.limits_as_of(locked, settled_at) l;

    FOR entry IN
        SELECT *
        FROM jsonb_to_recordset(entries) AS e (
            organization_id uuid, id uuid, correction_id uuid, only_if_expired boolean, model text,
            outcome text, status smallint, input_tokens bigint, cached_input_tokens bigint,
            output_tokens bigint, cost_nanos bigint, cost_source text, upstream_request_id text,
            first_byte_ms integer, duration_ms integer
        )
    LOOP
        DELETE FROM public.holds h
        WHERE h.organization_id = entry.organization_id
          AND h.id = entry.id
          AND (entry.only_if_expired IS NOT TRUE OR h.lease_until < settled_at)
          -- One that was taken after the locks were is left for the next time.
          AND h.limit_ids <@ coalesce(locked, '{}')
        RETURNING h.* INTO hold;
        IF FOUND THEN
            kind := 'call';
            IF entry.cost_nanos IS NULL AND hold.bound_nanos IS NOT NULL THEN
                entry.cost_nanos := hold.bound_nanos;
                entry.cost_source := 'bound';
            ELSIF entry.cost_source = 'estimated' THEN
                entry.cost_nanos := least(entry.cost_nanos, hold.bound_nanos);
            END IF;
            counted_tokens := CASE
                WHEN entry.cost_source = 'not_charged' THEN 0
                ELSE coalesce(entry.input_tokens + entry.output_tokens, hold.bound_tokens, 0)
            END;
        ELSE
            CONTINUE WHEN entry.only_if_expired;
            SELECT x.* INTO earlier
            FROM public.ledger_entries x
            WHERE x.organization_id = entry.organization_id
              AND x.id = entry.id
              AND x.outcome = 'interrupted'
              AND x.limit_ids <@ coalesce(locked, '{}')
              AND NOT EXISTS (
                  SELECT
                  FROM public.ledger_entries y
                  WHERE y.organization_id = x.organization_id
                    AND y.amends_id = x.id
                    AND y.kind = 'correction'
              );
            -- What is no better known than before needs no correction.
            CONTINUE WHEN NOT FOUND OR entry.cost_nanos IS NULL;
            kind := 'correction';
            hold := ROW(
                earlier.organization_id, earlier.id, earlier.api_key_id, earlier.end_user,
                earlier.request_id, earlier.endpoint, earlier.requested_model, earlier.is_stream,
                earlier.bound_nanos, earlier.bound_tokens, earlier.limit_ids,
                earlier.limit_windows, NULL, NULL, earlier.price_version,
                earlier.upstream_key_id, NULL, earlier.tags, NULL
            );
            counted_tokens := CASE
                WHEN entry.cost_source = 'not_charged' THEN 0
                ELSE coalesce(entry.input_tokens + entry.output_tokens, earlier.tokens)
            END - earlier.tokens;
            entry.cost_nanos := entry.cost_nanos - coalesce(earlier.cost_nanos, 0);
            entry.input_tokens := entry.input_tokens - coalesce(earlier.input_tokens, 0);
            entry.output_tokens := entry.output_tokens - coalesce(earlier.output_tokens, 0);
        END IF;

        counted_windows := hold.limit_windows;
        FOR n IN 1 .. cardinality(hold.limit_ids) LOOP
            i := array_position(ids, hold.limit_ids[n]);
            CONTINUE WHEN i IS NULL;
            touched[i] := true;
            used_more := CASE units[i] WHEN 'usd' THEN entry.cost_nanos
                                       WHEN 'tokens' THEN counted_tokens
                                       WHEN 'requests' THEN (kind = 'call')::integer
                                       ELSE 0 END;
            held_less := CASE WHEN kind = 'correction' THEN 0
                              WHEN units[i] = 'usd' THEN hold.bound_nanos
                              WHEN units[i] = 'tokens' THEN hold.bound_tokens
                              ELSE 1 END;
            IF bucket_ss[i] IS NULL THEN
                useds[i] := useds[i] + used_more;
                helds[i] := helds[i] - held_less;
                counted_windows[n] := windows[i];
            ELSIF hold.limit_windows[n] > windows[i] - 61 * bucket_ss[i] * interval '1 second' THEN
                -- Counted in full when it was admitted; what was not used is given back there.
                slot := extract(epoch FROM hold.limit_windows[n])::bigint / bucket_ss[i] % 61 + 1;
                rings[i][slot] := rings[i][slot] + used_more - held_less;
            END IF;
        END LOOP;

        INSERT INTO public.ledger_entries (
            organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint,
            model, requested_model, is_stream, outcome, status, requests, tokens, input_tokens,
            cached_input_tokens, output_tokens, cost_nanos, cost_source, bound_nanos, bound_tokens,
            price_version, limit_ids, limit_windows, counted_at, upstream_key_id,
            upstream_request_id, first_byte_ms, duration_ms, tags
        )
        VALUES (
            hold.organization_id,
            CASE kind WHEN 'call' THEN hold.id ELSE entry.correction_id END,
            kind,
            CASE kind WHEN 'correction' THEN hold.id END,
            hold.api_key_id, hold.end_user, hold.request_id, hold.endpoint, entry.model,
            hold.model, hold.is_stream, entry.outcome, entry.status, (kind = 'call')::integer,
            counted_tokens, entry.input_tokens, entry.cached_input_tokens, entry.output_tokens,
            entry.cost_nanos, entry.cost_source, hold.bound_nanos, hold.bound_tokens,
            hold.price_version, hold.limit_ids, counted_windows, settled_at, hold.upstream_key_id,
            coalesce(entry.upstream_request_id, hold.upstream_request_id), entry.first_byte_ms,
            entry.duration_ms, hold.tags
        );
        id := hold.id;
        cost_nanos := entry.cost_nanos;
        bound_nanos := hold.bound_nanos;
        RETURN NEXT;
    END LOOP;

    PERFORM public.write_limits(
        organization_ids, ids, useds, helds, bucket_ss, windows, rings, touched
    );
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

CREATE OR REPLACE FUNCTION public.write_limits(organization_ids uuid[], ids uuid[], useds bigint[], helds bigint[], bucket_ss integer[], windows timestamp with time zone[], rings bigint[], touched boolean[])
 RETURNS void
 LANGUAGE plpgsql
AS $function$
BEGIN
    FOR i IN 1 .. coalesce(cardinality(ids), 0) LOOP
        CONTINUE WHEN NOT touched[i];
        IF bucket_ss[i] IS NULL THEN
            UPDATE public.limits l
            SET held = helds[i],
                used = useds[i],
                carried = CASE WHEN l.window_start = windows[i] THEN l.carried ELSE 0 END,
                alerted_percent = CASE WHEN l.window_start = windows[i] THEN l.alerted_percent
                                       ELSE 0 END,
                window_start = windows[i]
            WHERE l.organization_id = organization_ids[i]
              AND l.id = ids[i];
        ELSE
            UPDATE public.limits l
            SET buckets = ARRAY(SELECT n FROM unnest(rings[i:i]) n),
                bucket_at = windows[i]
            WHERE l.organization_id = organization_ids[i]
              AND l.id = ids[i];
        END IF;
    END LOOP;
END
$function$;
