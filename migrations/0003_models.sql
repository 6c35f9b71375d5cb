-- Every name that a caller may use, versioned, so that a ledger entry can say at which prices it
-- was bounded. Aliases are the operator's, for all organizations (null) or for one.
-- depends: 0001_accounts

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
    CONSTRAINT models_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT models_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT models_kind CHECK (kind IN ('venice', 'alias')),
    CONSTRAINT models_targets CHECK ((kind = 'alias') = (coalesce(cardinality(targets), 0) > 0))
);

CREATE UNIQUE INDEX models_current_idx ON public.models (organization_id, name)
    NULLS NOT DISTINCT WHERE is_current;
