-- State that callers ask for: stored and background work, conversations, and their sealed content.
-- items has no foreign keys, for the same reason as the ledger.
-- depends: 0001_accounts

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
