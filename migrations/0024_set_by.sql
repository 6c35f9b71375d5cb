-- Who set a limit, what a key may use and what an alias stands for: the operator, or an administrator
-- of the organization. An administrator may tighten what the operator set, and never loosen it.
-- depends: 0017_one_transaction

ALTER TABLE public.limits ADD COLUMN set_by text NOT NULL DEFAULT 'operator'
    CONSTRAINT limits_set_by CHECK (set_by IN ('operator', 'administrator'));
ALTER TABLE public.api_keys ADD COLUMN set_by text NOT NULL DEFAULT 'operator'
    CONSTRAINT api_keys_set_by CHECK (set_by IN ('operator', 'administrator'));
ALTER TABLE public.models ADD COLUMN set_by text NOT NULL DEFAULT 'operator'
    CONSTRAINT models_set_by CHECK (set_by IN ('operator', 'administrator'));

-- What administrators made until now, and the operator has never changed, is theirs.
CREATE TEMPORARY TABLE of_administrators ON COMMIT DROP AS
SELECT e.organization_id, e.target
FROM public.audit_events e
LEFT JOIN public.api_keys k ON e.actor = 'api_key:' || k.id
WHERE e.action IN (
    'limit.create', 'limit.change', 'api_key.create', 'api_key.change', 'model_alias.set'
)
GROUP BY e.organization_id, e.target
HAVING bool_and(coalesce(k.role = 'admin', false));

UPDATE public.limits l
SET set_by = 'administrator'
FROM of_administrators a
WHERE a.organization_id = l.organization_id
  AND a.target = l.id::text;
UPDATE public.api_keys k
SET set_by = 'administrator'
FROM of_administrators a
WHERE a.organization_id = k.organization_id
  AND a.target = k.id::text;
UPDATE public.models m
SET set_by = 'administrator'
FROM of_administrators a
WHERE m.kind = 'alias'
  AND a.organization_id = m.organization_id
  AND a.target = m.name;

DROP TABLE of_administrators;

COMMENT ON COLUMN public.limits.set_by IS
    'Who set the ceiling last: the operator, or an administrator of the organization.';
COMMENT ON COLUMN public.api_keys.set_by IS
    'Who said last what the key may use: the operator, or an administrator of the organization.';
COMMENT ON COLUMN public.models.set_by IS
    'Who set an alias: the operator, or an administrator of the organization that has it.';
