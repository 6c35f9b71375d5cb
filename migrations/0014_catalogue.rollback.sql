ALTER TABLE public.models
    DROP CONSTRAINT models_retired,
    DROP COLUMN retired_at,
    DROP COLUMN also_named,
    DROP COLUMN position,
    DROP COLUMN listing;
