DROP TABLE public.models;
DROP TABLE public.upstream_keys;
