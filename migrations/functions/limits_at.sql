-- Roll limits on to an instant: windows and rings rolled, raises applied.
--
-- used and held have one amount for each limit. A ring holds nothing, whatever its row has: what is
-- admitted counts as used.
CREATE OR REPLACE FUNCTION public.limits_at(
    rows public.limit_row[], instant timestamptz,
    OUT limits public.locked_limit[], OUT used bigint[], OUT held bigint[]
)
LANGUAGE plpgsql AS $$
DECLARE
    l public.limit_row;
    bucket_s integer;
    window_at timestamptz;
    ring bigint[];
    amount bigint;
    bucket bigint;
BEGIN
    FOREACH l IN ARRAY rows LOOP
        bucket_s := public.limit_bucket_s(l.unit, l.period);
        -- A clock that went back stays with what is newest until it has caught up.
        IF bucket_s IS NULL THEN
            ring := NULL;
            window_at := greatest(l.window_start, public.limit_window(l.period, instant));
            amount := CASE WHEN l.window_start = window_at THEN l.used ELSE 0 END;
        ELSE
            window_at := greatest(
                l.bucket_at, date_bin(bucket_s * interval '1 second', instant, 'epoch')
            );
            ring := CASE
                WHEN l.bucket_at = window_at AND l.buckets IS NOT NULL THEN l.buckets
                ELSE public.limit_ring(l.buckets, l.bucket_at, bucket_s, window_at) END;
            amount := 0;
            FOREACH bucket IN ARRAY ring LOOP
                amount := amount + bucket;
            END LOOP;
        END IF;
        IF l.template_id IS NOT NULL THEN
            l := public.limit_of_template(l);
        END IF;
        used := used || amount;
        held := held || CASE WHEN bucket_s IS NULL THEN l.held ELSE 0 END;
        limits := limits || ROW(
            l.id, l.template_id, l.scope, l.model, l.unit, l.period,
            CASE WHEN l.raised_until > instant THEN l.raised_to ELSE l.ceiling END, bucket_s,
            window_at, ring, l.alert_percents,
            CASE WHEN l.window_start = window_at THEN l.alerted_percent ELSE 0 END,
            l.window_start IS DISTINCT FROM window_at, false
        )::public.locked_limit;
    END LOOP;
END
$$;
