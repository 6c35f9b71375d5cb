-- Where organizations want to be told, and the outbox of what they are told.
-- depends: 0001_accounts

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
