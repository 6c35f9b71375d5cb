LOCK TABLE public.ledger_entries, public.holds, public.limits IN ACCESS EXCLUSIVE MODE;
ALTER TABLE public.ledger_entries ADD CONSTRAINT ledger_entries_cost_source CHECK (
    cost_source IN ('reported', 'computed', 'estimated', 'not_charged', 'bound', 'manual', 'unknown')
);
ALTER TABLE public.ledger_entries ADD CONSTRAINT ledger_entries_call CHECK (
    kind <> 'call'
    OR (api_key_id IS NOT NULL AND outcome IS NOT NULL AND endpoint IS NOT NULL
        AND request_id IS NOT NULL)
);
ALTER TABLE public.ledger_entries ADD CONSTRAINT ledger_entries_amends CHECK (
    kind <> 'correction' OR amends_id IS NOT NULL
);
ALTER TABLE public.ledger_entries ADD CONSTRAINT ledger_entries_kind CHECK (
    kind IN ('call', 'correction', 'credit', 'unattributed')
);
ALTER TABLE public.holds ADD CONSTRAINT holds_bound_tokens CHECK (bound_tokens >= 0);
ALTER TABLE public.holds ADD CONSTRAINT holds_bound_nanos CHECK (bound_nanos >= 0);
ALTER TABLE public.limits ADD CONSTRAINT limits_set_by CHECK (
    set_by IN ('operator', 'administrator')
);
ALTER TABLE public.limits ADD CONSTRAINT limits_raised CHECK (
    (raised_to IS NULL) = (raised_until IS NULL)
);
ALTER TABLE public.limits ADD CONSTRAINT limits_ceiling CHECK (ceiling >= 0);
ALTER TABLE public.limits ADD CONSTRAINT limits_period CHECK (
    CASE WHEN unit = 'concurrency' THEN period IS NULL
         ELSE period IN ('minute', 'hour', 'day', 'month', 'lifetime') END IS TRUE
);
ALTER TABLE public.limits ADD CONSTRAINT limits_unit CHECK (
    unit IN ('usd', 'requests', 'tokens', 'concurrency')
);
ALTER TABLE public.limits ADD CONSTRAINT limits_scope_child CHECK (
    template_id IS NULL OR scope = 'end_user'
);
ALTER TABLE public.limits ADD CONSTRAINT limits_scope_api_key CHECK (
    scope <> 'api_key' OR api_key_id IS NOT NULL
);
ALTER TABLE public.limits ADD CONSTRAINT limits_scope_end_user CHECK (
    (scope = 'end_user') = (end_user IS NOT NULL)
);
ALTER TABLE public.limits ADD CONSTRAINT limits_scope CHECK (
    scope IN ('organization', 'api_key', 'end_user', 'each_end_user')
);
DROP TRIGGER limits_check ON public.limits;
DROP FUNCTION public.check_limit();
DROP TYPE public.entry_row;
DROP TYPE public.hold_row;
DROP TYPE public.asking_call;
DROP TYPE public.ended_call;
DROP TYPE public.written_limit;
DROP TYPE public.locked_limit;
DROP TYPE public.limit_row;
