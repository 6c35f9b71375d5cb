DROP TABLE public.items;
DROP TABLE public.conversations;
DROP TABLE public.generations;
