DROP TABLE public.webhook_deliveries;
DROP TABLE public.webhook_endpoints;
