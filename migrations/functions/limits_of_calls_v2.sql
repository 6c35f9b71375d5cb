-- Return the limits of calls, and of limits for each end user a pair of template and end user.
CREATE OR REPLACE FUNCTION public.limits_of_calls_v2(
    calls public.asking_call[], OUT applying public.applying_limits
)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    caller text := '';
    template_id uuid;
    ids uuid[];
    template_ids uuid[];
    template_users bytea[];
BEGIN
    FOR n IN 1 .. cardinality(calls) LOOP
        CONTINUE WHEN calls[n].caller = caller;
        caller := calls[n].caller;
        ids := ids || calls[n].limit_ids;
        IF calls[n].template_ids IS NOT NULL THEN
            FOREACH template_id IN ARRAY calls[n].template_ids LOOP
                template_ids := template_ids || template_id;
                template_users := template_users || coalesce(calls[n].end_user, '');
            END LOOP;
        END IF;
    END LOOP;
    applying := ROW(ids, template_ids, template_users, NULL);
END
$$;
