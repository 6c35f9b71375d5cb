-- Return why limits refuse a call, with the numbers that prove it; null where all have room.
--
-- Of several limits the one with the gravest reason counts, then the one that refuses longest.
CREATE OR REPLACE FUNCTION public.refusal_of(
    limits public.limit_state[], places integer[], nanos bigint, tokens bigint,
    decided_at timestamptz
)
RETURNS public.batch_result
LANGUAGE plpgsql AS $$
DECLARE
    verdicts CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    place integer;
    state public.limit_state;
    need bigint;
    rank integer;
    retry_at timestamptz;
    worst public.limit_state;
    worst_need bigint;
    worst_rank integer := 0;
    worst_retry_at timestamptz;
    refusal public.batch_result;
BEGIN
    FOREACH place IN ARRAY places LOOP
        state := limits[place];
        need := public.amount_of(state.unit, nanos, tokens, 1);
        CONTINUE WHEN state.used + state.held + need <= state.ceiling;
        rank := CASE WHEN need IS NULL THEN 4
                     WHEN state.unit <> 'usd' THEN 2
                     WHEN state.used + need > state.ceiling THEN 3
                     ELSE 1 END;
        retry_at := CASE WHEN rank > 2 OR need > state.ceiling THEN 'infinity'
                         ELSE public.room_at(state, need, decided_at) END;
        IF rank > worst_rank OR rank = worst_rank AND retry_at > worst_retry_at THEN
            worst := state;
            worst_need := need;
            worst_rank := rank;
            worst_retry_at := retry_at;
        END IF;
    END LOOP;
    IF worst_rank > 0 THEN
        refusal.verdict := verdicts[worst_rank];
        refusal.limit_id := coalesce(worst.template_id, worst.id);
        refusal.scope := worst.scope;
        refusal.model := worst.model;
        refusal.unit := worst.unit;
        refusal.period := worst.period;
        refusal.used := worst.used;
        refusal.held := worst.held;
        refusal.ceiling := worst.ceiling;
        refusal.needed := worst_need;
        refusal.resets_at := CASE WHEN worst.bucket_s IS NULL THEN worst.resets_at END;
        refusal.retry_after_s :=
            ceil(extract(epoch FROM nullif(worst_retry_at, 'infinity') - decided_at));
    END IF;
    RETURN refusal;
END
$$;
