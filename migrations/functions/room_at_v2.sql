-- Return when a limit will have room for an amount, were nothing else admitted until then.
CREATE OR REPLACE FUNCTION public.room_at_v2(
    state public.locked_limit, used bigint, held bigint, need bigint, decided_at timestamptz
)
RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
    missing bigint := used + need - state.ceiling;
    running bigint := extract(epoch FROM state.window_at)::bigint / state.bucket_s;
BEGIN
    IF state.bucket_s IS NULL THEN
        -- Where only what other calls hold is in the way, it may be free at any time.
        RETURN CASE WHEN missing > 0
                    THEN coalesce(public.limit_resets_at(state.period, state.window_at), 'infinity')
                    ELSE decided_at + interval '1 second' END;
    END IF;
    -- What this batch has admitted is in the newest bucket.
    missing := missing + held;
    FOR bucket IN running - 60 .. running LOOP
        missing := missing - state.ring[bucket % 61 + 1];
        IF missing <= 0 OR bucket = running THEN
            RETURN to_timestamp((bucket + 61) * state.bucket_s);
        END IF;
    END LOOP;
END
$$;
