-- Refusals, and the attempts of calls that did not succeed at once.
--
-- The schema derived holds only what can be lost or made again. Nothing in it refers to public by a
-- foreign key, and nothing in public depends on it. Both tables are kept for a time and up to a number
-- of rows; their ids are UUIDv7, so the oldest rows are found by the primary key.
-- depends: 0006_cheap_batches

CREATE SCHEMA derived;

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
    -- Refusals of a period are counted by the index alone.
    CONSTRAINT refusals_pkey PRIMARY KEY (id) INCLUDE (code, status, repeats, refused_at)
);

CREATE INDEX refusals_request_id_idx ON derived.refusals (request_id);
CREATE INDEX refusals_organization_id_idx ON derived.refusals (organization_id, id);
CREATE INDEX refusals_api_key_id_idx ON derived.refusals (api_key_id, id);
CREATE INDEX refusals_code_idx ON derived.refusals (code, id);

COMMENT ON COLUMN derived.refusals.organization_id IS
    'Null where no key of an organization was shown.';
COMMENT ON COLUMN derived.refusals.limit_state IS
    'The limit that refused, with the numbers that the caller got.';
COMMENT ON COLUMN derived.refusals.repeats IS
    'How many more refusals of the same key or address and code came within the same second and have no row.';

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

-- A call is found by the id of its request, which its caller may have chosen: another organization may
-- have many entries with the same.
CREATE INDEX ledger_entries_request_id_idx ON public.ledger_entries (request_id, organization_id);
