DROP TABLE public.models;
