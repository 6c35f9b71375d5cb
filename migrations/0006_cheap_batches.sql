-- Types of their own for what the steps of settle_and_admit() pass to each other, so that no function
-- takes the row type of a table, and constraints that cost a batch nothing.
--
-- A CHECK is read, planned and run by each statement that writes its table, whatever columns it
-- changes. So what binds the settings of a limit is checked when a setting changes, and what the
-- functions write is checked by them, once a batch and not in each statement.
-- depends: 0005_batch_types

-- In the order of a batch: once no batch has the ledger, none has the others.
LOCK TABLE public.ledger_entries, public.holds, public.limits IN ACCESS EXCLUSIVE MODE;

-- A limit as its lock found it, with what a child has from its template.
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

-- A limit while it is locked: its window or its ring is rolled on to the instant of the batch, and a
-- child has the ceiling and the alert thresholds of its template. What it has used and what it holds
-- are in arrays beside it, which change all the time.
CREATE TYPE public.locked_limit AS (
    id uuid,
    template_id uuid,
    scope text,
    model text,
    unit text,
    period text,
    ceiling bigint,
    bucket_s integer,       -- null where a window is counted, not a ring
    window_at timestamptz,  -- the start of the window, or of the ring's newest bucket
    ring bigint[],
    alert_percents smallint[],
    alerted_percent smallint,
    is_rolled boolean,      -- the window is another one than the row has
    is_changed boolean      -- the ring; of used and held one sees it
);

-- What a batch writes of a limit.
CREATE TYPE public.written_limit AS (
    id uuid,
    used bigint,
    held bigint,
    is_rolled boolean,
    window_start timestamptz,
    buckets bigint[],
    bucket_at timestamptz
);

-- The end of a call, as the service states it.
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

-- A call that asks for admission, with its standing and the limits that may bind it: of limits for
-- each end user, the templates.
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
    caller text,              -- all that decides which limits bind a call
    standing text,
    limit_ids uuid[],
    template_ids uuid[]
);

-- A row of holds, as far as a batch writes it.
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

-- A row of ledger_entries. The instant at which it is counted and made is the batch's.
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

-- The settings of a limit are checked when one of them changes, and not when a call is counted.
CREATE FUNCTION public.check_limit() RETURNS trigger
LANGUAGE plpgsql AS $$
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
$$;

CREATE TRIGGER limits_check AFTER INSERT OR UPDATE OF scope, api_key_id, end_user, template_id, unit,
    period, ceiling, raised_to, raised_until, set_by ON public.limits
    FOR EACH ROW EXECUTE FUNCTION public.check_limit();

ALTER TABLE public.limits DROP CONSTRAINT limits_scope;
ALTER TABLE public.limits DROP CONSTRAINT limits_scope_end_user;
ALTER TABLE public.limits DROP CONSTRAINT limits_scope_api_key;
ALTER TABLE public.limits DROP CONSTRAINT limits_scope_child;
ALTER TABLE public.limits DROP CONSTRAINT limits_unit;
ALTER TABLE public.limits DROP CONSTRAINT limits_period;
ALTER TABLE public.limits DROP CONSTRAINT limits_ceiling;
ALTER TABLE public.limits DROP CONSTRAINT limits_raised;
ALTER TABLE public.limits DROP CONSTRAINT limits_set_by;

-- end_calls_v2() and corrections_of_v2() write kinds and sources of a cost that are constants or that
-- check_entries() has checked, and take_calls_v2() admits no bound below zero.
ALTER TABLE public.holds DROP CONSTRAINT holds_bound_nanos;
ALTER TABLE public.holds DROP CONSTRAINT holds_bound_tokens;
ALTER TABLE public.ledger_entries DROP CONSTRAINT ledger_entries_kind;
ALTER TABLE public.ledger_entries DROP CONSTRAINT ledger_entries_amends;
ALTER TABLE public.ledger_entries DROP CONSTRAINT ledger_entries_call;
ALTER TABLE public.ledger_entries DROP CONSTRAINT ledger_entries_cost_source;
