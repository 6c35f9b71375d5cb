DROP INDEX public.audit_events_implausible_idx;
