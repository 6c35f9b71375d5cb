-- Roll-ups of the ledger: what was used in each hour and day, kept by one background writer.
--
-- Entries are in them up to an instant, by counted_at; from there on reports read the ledger itself.
-- All of this can be made again from the ledger.
-- depends: 0007_refusals

-- An entry as reports count it. A time is a histogram of one, and a histogram is one number: twelve
-- digits for each bucket, with the shortest times in the lowest digits. So the sum of the numbers is the
-- histogram of all. The buckets begin at 0, 50, 100, ... milliseconds.
CREATE VIEW derived.entries AS
SELECT e.organization_id, e.id, e.counted_at, e.api_key_id, e.end_user, e.model, e.endpoint, e.outcome,
       e.tags,
       1::bigint AS entries,
       e.requests::bigint AS calls,
       CASE WHEN e.outcome NOT IN ('ok', 'client_closed', 'not_sent')
            THEN e.requests::bigint ELSE 0 END AS failures,
       coalesce(e.input_tokens, 0) AS input_tokens,
       coalesce(e.cached_input_tokens, 0) AS cached_input_tokens,
       coalesce(e.output_tokens, 0) AS output_tokens,
       coalesce(e.cost_nanos, 0) AS cost_nanos,
       (e.cost_nanos IS NULL)::integer::bigint AS unknown_costs,
       coalesce(
           ('{1,1e12,1e24,1e36,1e48,1e60,1e72,1e84,1e96,1e108,1e120,1e132,1e144,1e156,1e168,1e180,1e192}'::numeric[])[
               1 + width_bucket(
                   e.first_byte_ms,
                   '{50,100,200,300,500,750,1000,1500,2000,3000,5000,10000,20000,30000,60000,120000}'::integer[]
               )
           ],
           0
       ) AS first_bytes,
       coalesce(
           ('{1,1e12,1e24,1e36,1e48,1e60,1e72,1e84,1e96,1e108,1e120,1e132,1e144,1e156,1e168,1e180,1e192}'::numeric[])[
               1 + width_bucket(
                   e.duration_ms,
                   '{50,100,200,300,500,750,1000,1500,2000,3000,5000,10000,20000,30000,60000,120000}'::integer[]
               )
           ],
           0
       ) AS durations
FROM public.ledger_entries e;

-- Each entry is counted six times, so that every report finds a cut with few rows. The cuts of a key have
-- no model, endpoint and outcome; those of a model have no organization and no key.
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

CREATE TABLE derived.usage_by_hour PARTITION OF derived.usage
    FOR VALUES IN ('hour') WITH (fillfactor = 70);
CREATE TABLE derived.usage_by_day PARTITION OF derived.usage
    FOR VALUES IN ('day') WITH (fillfactor = 70);
CREATE TABLE derived.key_usage_by_hour PARTITION OF derived.usage
    FOR VALUES IN ('key_hour') WITH (fillfactor = 70);
CREATE TABLE derived.key_usage_by_day PARTITION OF derived.usage
    FOR VALUES IN ('key_day') WITH (fillfactor = 70);
CREATE TABLE derived.model_usage_by_hour PARTITION OF derived.usage
    FOR VALUES IN ('model_hour') WITH (fillfactor = 70);
CREATE TABLE derived.model_usage_by_day PARTITION OF derived.usage
    FOR VALUES IN ('model_day') WITH (fillfactor = 70);

CREATE UNIQUE INDEX usage_key ON derived.usage (
    cut, organization_id, start_at, api_key_id, model, endpoint, outcome
) NULLS NOT DISTINCT;
-- A report over all organizations finds its rows by their time alone.
CREATE INDEX usage_start_at_idx ON derived.usage (start_at);
-- Who used a model.
CREATE INDEX usage_by_day_model_idx ON derived.usage_by_day (model, start_at);

-- One row. Entries counted before counted_to are in the roll-ups. next_to follows it once the
-- transactions in waits_for have ended: those that could write entries at that instant.
CREATE TABLE derived.usage_cursor (
    is_only boolean NOT NULL DEFAULT true,
    counted_to timestamptz,
    next_to timestamptz,
    waits_for text[] NOT NULL DEFAULT '{}',
    CONSTRAINT usage_cursor_pkey PRIMARY KEY (is_only),
    CONSTRAINT usage_cursor_is_only CHECK (is_only)
);
