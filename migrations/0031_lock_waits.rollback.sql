ALTER FUNCTION public.settle_and_admit(jsonb, boolean, jsonb, uuid, interval, integer)
    RESET lock_timeout;
