-- Render nano-dollars as a decimal of US dollars with at least two places.
CREATE OR REPLACE FUNCTION public.usd_text(nanos bigint) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT regexp_replace((nanos::numeric / 1000000000)::numeric(30, 9)::text, '0{1,7}$', '')
$$;
