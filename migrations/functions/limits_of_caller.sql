-- Return which of the locked limits bind a call: their places, those of them on requests and tokens,
-- their ids and their windows.
--
-- ids are those of limits. child_ids has a counter for each pair of template and end user.
CREATE OR REPLACE FUNCTION public.limits_of_caller(
    limits public.locked_limit[], ids uuid[], call public.asking_call,
    applying public.applying_limits, child_ids uuid[],
    OUT places integer[], OUT rate_places integer[], OUT limit_ids uuid[],
    OUT limit_windows timestamptz[]
)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    own_ids uuid[] := coalesce(call.limit_ids, '{}');
    id uuid;
    place integer;
BEGIN
    places := '{}';
    rate_places := '{}';
    limit_ids := '{}';
    limit_windows := '{}';
    IF call.template_ids IS NOT NULL THEN
        FOREACH place IN ARRAY
            array_positions(applying.template_users, coalesce(call.end_user, ''))
        LOOP
            -- Calls of other models, or of other keys, may bring the same pair again.
            IF applying.template_ids[place] = ANY (call.template_ids)
               AND child_ids[place] <> ALL (own_ids) THEN
                own_ids := own_ids || child_ids[place];
            END IF;
        END LOOP;
    END IF;
    FOREACH id IN ARRAY own_ids LOOP
        place := array_position(ids, id);
        CONTINUE WHEN place IS NULL OR limits[place].model <> call.model;
        places := places || place;
        limit_ids := limit_ids || id;
        limit_windows := limit_windows || limits[place].window_at;
        IF limits[place].unit IN ('requests', 'tokens') THEN
            rate_places := rate_places || place;
        END IF;
    END LOOP;
END
$$;
