DROP TYPE public.batch_result;
DROP TYPE public.applying_limits;
DROP TYPE public.settled_holds;
DROP TYPE public.limit_state;
