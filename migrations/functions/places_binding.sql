-- Return the places in limits of those that bind a call.
--
-- owner_ids are the organizations of limits, which are in order of these.
CREATE OR REPLACE FUNCTION public.places_binding(
    limits public.limit_state[], owner_ids uuid[], applying public.applying_limits,
    child_ids uuid[], call_organization_id uuid, call_api_key_id uuid, call_end_user bytea,
    call_model text
)
RETURNS integer[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    places integer[] := '{}';
    own_child_ids uuid[];  -- the counters that templates keep for the end user
    place integer;
    state public.limit_state;
    is_binding boolean;
BEGIN
    IF child_ids IS NOT NULL THEN
        FOREACH place IN ARRAY array_positions(applying.template_users, coalesce(call_end_user, ''))
        LOOP
            own_child_ids := own_child_ids || child_ids[place];
        END LOOP;
    END IF;
    place := array_position(owner_ids, call_organization_id);
    WHILE owner_ids[place] = call_organization_id LOOP
        state := limits[place];
        is_binding := CASE
            WHEN state.api_key_id <> call_api_key_id OR state.model <> call_model THEN false
            WHEN state.scope <> 'end_user' THEN state.id = ANY (applying.ids)
            WHEN state.id = ANY (applying.ids) THEN state.end_user = call_end_user
            ELSE state.id = ANY (own_child_ids) END;
        IF is_binding THEN
            places := places || place;
        END IF;
        place := place + 1;
    END LOOP;
    RETURN places;
END
$$;
