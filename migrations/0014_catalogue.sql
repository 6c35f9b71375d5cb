-- A copy of Venice's list that can be served: each model as Venice sent it, in Venice's order, by
-- its other names, and when it went. What changes without a new version is changed in place.
-- depends: 0013_export

ALTER TABLE public.models
    ADD COLUMN listing text,
    ADD COLUMN position integer,
    ADD COLUMN also_named text[] NOT NULL DEFAULT '{}',
    ADD COLUMN retired_at timestamptz,
    ADD CONSTRAINT models_retired CHECK (retired_at IS NULL OR (kind = 'venice' AND NOT is_current));
