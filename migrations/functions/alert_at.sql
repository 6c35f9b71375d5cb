-- Return the use of a limit on money at which its next alert is due, or null when none is.
CREATE OR REPLACE FUNCTION public.alert_at(
    unit text, ceiling bigint, alert_percents smallint[], alerted_percent smallint
)
RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    percent smallint;
    next_percent smallint;
BEGIN
    IF unit <> 'usd' OR ceiling = 0 THEN
        RETURN NULL;
    END IF;
    FOREACH percent IN ARRAY alert_percents LOOP
        IF percent > alerted_percent THEN
            next_percent := least(next_percent, percent);
        END IF;
    END LOOP;
    -- Rounded up, and nothing on the way exceeds the ceiling.
    RETURN ceiling / 100 * next_percent + (ceiling % 100 * next_percent + 99) / 100;
END
$$;
