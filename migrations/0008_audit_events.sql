-- Who changed what: per organization a sequence and a hash chain, insert-only.
-- depends: 0004_ledger

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
    CONSTRAINT audit_events_organization_id_fkey FOREIGN KEY (organization_id)
        REFERENCES public.organizations (id),
    CONSTRAINT audit_events_sequence CHECK (sequence > 0),
    CONSTRAINT audit_events_chain CHECK ((sequence = 1) = (previous_hash IS NULL)),
    CONSTRAINT audit_events_hash_length CHECK (octet_length(hash) = 32)
);

CREATE TRIGGER audit_events_insert_only BEFORE UPDATE OR DELETE ON public.audit_events
    FOR EACH ROW EXECUTE FUNCTION public.refuse_change();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON public.audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();
