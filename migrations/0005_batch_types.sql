-- What the steps of settle_and_admit() pass to each other. Each type is an argument or a result of
-- functions in functions/, so a release that needs another shape adds a type under another name.
-- depends: 0004_stored

-- A limit while it is locked: its window or its ring is rolled on to the instant of the batch, and
-- a child has the ceiling of its template.
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
    used bigint,            -- in the window, or in the whole ring
    held bigint,
    bucket_s integer,       -- null where a window is counted, not a ring
    window_at timestamptz,  -- the start of the window, or of the ring's newest bucket
    resets_at timestamptz,
    ring bigint[],
    alert_at bigint,
    is_changed boolean
);

-- What the entries of a batch settle.
CREATE TYPE public.settled_holds AS (
    organization_ids uuid[],  -- one for each entry
    ids uuid[],               -- one for each entry
    seen_ids uuid[],          -- of those, the ones that had a hold
    interrupted_ids uuid[],   -- and the ones that the sweeper settled
    limit_ids uuid[]
);

-- The limits that apply to the calls of a batch.
CREATE TYPE public.applying_limits AS (
    ids uuid[],
    template_ids uuid[],      -- a pair for each template and end user
    template_users bytea[],
    left_ids uuid[]           -- the limits of the holds that are moved
);

-- A row of the result of settle_and_admit().
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
