-- Costs above the most that their model can cost are events of the operator's; a refusal by a limit
-- that such a cost has used up names it, and finds it by its organization.
-- depends: 0017_one_transaction

CREATE INDEX audit_events_implausible_idx
    ON public.audit_events ((detail ->> 'organization_id'), sequence)
    WHERE action = 'ledger.implausible_cost';
