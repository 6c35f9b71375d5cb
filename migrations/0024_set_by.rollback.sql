ALTER TABLE public.models DROP COLUMN set_by;
ALTER TABLE public.api_keys DROP COLUMN set_by;
ALTER TABLE public.limits DROP COLUMN set_by;
