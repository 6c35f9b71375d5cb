-- What is stored for callers: repeatable answers, background work, conversations and their sealed
-- content, and the outbox of webhooks.
-- depends: 0003_books

-- Answers that a repeated Idempotency-Key gets again. The body of an answer is in items.
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
    CONSTRAINT generations_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT generations_kind CHECK (
        kind IN ('response', 'image', 'video', 'audio', 'batch', 'file')
    ),
    CONSTRAINT generations_status CHECK (
        status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'incomplete', 'expired')
    )
);

CREATE INDEX generations_next_poll_at_idx ON public.generations (next_poll_at)
    WHERE status IN ('queued', 'in_progress');
CREATE INDEX generations_parent_id_idx ON public.generations (organization_id, parent_id)
    WHERE parent_id IS NOT NULL;
CREATE INDEX generations_expires_at_idx ON public.generations (expires_at)
    WHERE expires_at IS NOT NULL;

CREATE TABLE public.conversations (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CONSTRAINT conversations_pkey PRIMARY KEY (organization_id, id),
    CONSTRAINT conversations_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id)
);

CREATE INDEX conversations_expires_at_idx ON public.conversations (expires_at)
    WHERE expires_at IS NOT NULL;

-- Without foreign keys: their checks would lock one hot organization row.
CREATE TABLE public.items (
    organization_id uuid NOT NULL,
    parent_id uuid NOT NULL,
    position bigint NOT NULL,
    kind text NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT items_pkey PRIMARY KEY (organization_id, parent_id, position),
    CONSTRAINT items_position CHECK (position >= 0),
    CONSTRAINT items_kind CHECK (
        kind IN ('item', 'input', 'output', 'segment', 'body', 'line')
    )
);

-- Where an organization wants to be notified, and the notifications that wait to be sent.
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
    CONSTRAINT webhook_endpoints_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT webhook_endpoints_status CHECK (status IN ('active', 'disabled')),
    CONSTRAINT webhook_endpoints_previous_until CHECK (
        (previous_sealed_secret IS NULL) = (previous_until IS NULL)
    )
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
    CONSTRAINT webhook_deliveries_endpoint_id_fkey FOREIGN KEY (endpoint_id)
        REFERENCES public.webhook_endpoints (id)
);

CREATE INDEX webhook_deliveries_next_attempt_at_idx
    ON public.webhook_deliveries (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
