-- Return a limit as of an instant: its window or its ring rolled, a raise applied.
--
-- A child has the ceiling and the alert thresholds of its template.
CREATE OR REPLACE FUNCTION public.limit_as_of(l public.limits, instant timestamptz)
RETURNS public.limit_state
LANGUAGE plpgsql STABLE AS $$
DECLARE
    template public.limits;
    state public.limit_state;
    alert_percents smallint[] := l.alert_percents;
    bucket bigint;
    percent smallint;
    next_percent smallint;
BEGIN
    state := ROW(
        l.organization_id, l.id, l.template_id, l.scope, l.api_key_id, l.end_user, l.model, l.unit,
        l.period, CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END, 0, l.held,
        public.limit_bucket_s(l.unit, l.period), NULL, NULL, NULL, NULL, false
    );
    IF l.template_id IS NOT NULL THEN
        SELECT t.* INTO template
        FROM public.limits t
        WHERE t.organization_id = l.organization_id
          AND t.id = l.template_id;
        IF template.id IS NOT NULL THEN
            state.ceiling := CASE WHEN template.raised_until > instant THEN template.raised_to
                                  ELSE template.ceiling END;
            alert_percents := template.alert_percents;
        END IF;
    END IF;

    -- A clock that went back stays with what is newest until it has caught up.
    IF state.bucket_s IS NULL THEN
        state.window_at := greatest(l.window_start, public.limit_window(l.period, instant));
        state.resets_at := public.limit_resets_at(l.period, state.window_at);
        state.used := CASE WHEN l.window_start = state.window_at THEN l.used ELSE 0 END;
    ELSE
        state.window_at := greatest(
            l.bucket_at, date_bin(state.bucket_s * interval '1 second', instant, 'epoch')
        );
        state.resets_at := state.window_at + 61 * state.bucket_s * interval '1 second';
        state.ring := CASE
            WHEN l.bucket_at = state.window_at AND l.buckets IS NOT NULL THEN l.buckets
            ELSE public.limit_ring(l.buckets, l.bucket_at, state.bucket_s, state.window_at) END;
        FOREACH bucket IN ARRAY state.ring LOOP
            state.used := state.used + bucket;
        END LOOP;
    END IF;

    IF l.unit = 'usd' THEN
        FOREACH percent IN ARRAY alert_percents LOOP
            IF percent > l.alerted_percent OR l.window_start IS DISTINCT FROM state.window_at THEN
                next_percent := least(next_percent, percent);
            END IF;
        END LOOP;
        -- The use at which the next alert is due.
        state.alert_at := ceil(next_percent * nullif(state.ceiling, 0)::numeric / 100);
    END IF;
    RETURN state;
END
$$;
