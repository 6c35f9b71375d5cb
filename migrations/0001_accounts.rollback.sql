DROP TABLE public.api_keys;
DROP TABLE public.organizations;
