-- Return the counter of an end user with the ceiling and the alert thresholds of its template.
CREATE OR REPLACE FUNCTION public.limit_of_template(INOUT l public.limit_row)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    template record;
BEGIN
    SELECT t.ceiling, t.raised_to, t.raised_until, t.alert_percents INTO template
    FROM public.limits t
    WHERE t.organization_id = l.organization_id
      AND t.id = l.template_id;
    IF FOUND THEN
        l.ceiling := template.ceiling;
        l.raised_to := template.raised_to;
        l.raised_until := template.raised_until;
        l.alert_percents := template.alert_percents;
    END IF;
END
$$;
