DROP TABLE public.upstream_keys;
