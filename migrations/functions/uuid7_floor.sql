-- Return the smallest UUIDv7 of an instant: 48 bits of Unix milliseconds, then zeros.
CREATE OR REPLACE FUNCTION public.uuid7_floor(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (
        lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '00000000000000000000'
    )::uuid
$$;
