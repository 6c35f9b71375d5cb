-- Answers that a repeated Idempotency-Key gets again. The body of an answer is in items.
-- depends: 0001_accounts

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
    CONSTRAINT idempotency_keys_key_length CHECK (char_length(key) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_request_digest_length CHECK (octet_length(request_digest) = 32),
    CONSTRAINT idempotency_keys_state CHECK (state IN ('running', 'done')),
    CONSTRAINT idempotency_keys_done CHECK (state <> 'done' OR status IS NOT NULL)
);

CREATE INDEX idempotency_keys_expires_at_idx ON public.idempotency_keys (expires_at);
