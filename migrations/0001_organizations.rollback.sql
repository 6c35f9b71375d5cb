DROP TABLE public.audit_events;
DROP FUNCTION public.refuse_change();
DROP TABLE public.api_keys;
DROP TABLE public.organizations;
