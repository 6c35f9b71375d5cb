DROP TABLE public.webhook_deliveries;
DROP TABLE public.webhook_endpoints;
DROP TABLE public.items;
DROP TABLE public.conversations;
DROP TABLE public.generations;
DROP TABLE public.idempotency_keys;
