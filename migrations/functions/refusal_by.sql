-- Return why limits refuse a call, with the numbers that prove it.
--
-- Of several limits the one with the gravest reason counts, then the one that refuses longest.
CREATE OR REPLACE FUNCTION public.refusal_by(
    limits public.locked_limit[], used bigint[], held bigint[], places integer[], nanos bigint,
    tokens bigint, decided_at timestamptz
)
RETURNS public.batch_result
LANGUAGE plpgsql AS $$
DECLARE
    verdicts CONSTANT text[] := '{limit_held,rate_limited,limit_exceeded,price_unknown}';
    place integer;
    state public.locked_limit;
    need bigint;
    rank integer;
    retry_at timestamptz;
    worst_rank integer := 0;
    worst_retry_at timestamptz;
    refusal public.batch_result;
BEGIN
    FOREACH place IN ARRAY places LOOP
        state := limits[place];
        need := public.amount_of(state.unit, nanos, tokens, 1);
        CONTINUE WHEN used[place] + held[place] + need <= state.ceiling;
        rank := CASE WHEN need IS NULL THEN 4
                     WHEN state.unit <> 'usd' THEN 2
                     WHEN used[place] + need > state.ceiling THEN 3
                     ELSE 1 END;
        retry_at := CASE WHEN rank > 2 OR need > state.ceiling THEN 'infinity'
                         ELSE public.room_at_v2(
                             state, used[place], held[place], need, decided_at
                         ) END;
        CONTINUE WHEN rank < worst_rank OR rank = worst_rank AND retry_at <= worst_retry_at;
        worst_rank := rank;
        worst_retry_at := retry_at;
        refusal.verdict := verdicts[rank];
        refusal.limit_id := coalesce(state.template_id, state.id);
        refusal.scope := state.scope;
        refusal.model := state.model;
        refusal.unit := state.unit;
        refusal.period := state.period;
        refusal.used := used[place];
        refusal.held := held[place];
        refusal.ceiling := state.ceiling;
        refusal.needed := need;
        refusal.resets_at := public.limit_resets_at(state.period, state.window_at);
        IF state.bucket_s IS NOT NULL THEN
            refusal.used := used[place] + held[place];
            refusal.held := 0;
            refusal.resets_at := NULL;
        END IF;
        refusal.retry_after_s :=
            ceil(extract(epoch FROM nullif(retry_at, 'infinity') - decided_at));
    END LOOP;
    RETURN refusal;
END
$$;
