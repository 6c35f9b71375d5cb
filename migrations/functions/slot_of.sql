-- Return the place in a ring of the bucket that begins at an instant.
CREATE OR REPLACE FUNCTION public.slot_of(bucket_at timestamptz, bucket_s integer) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT (extract(epoch FROM bucket_at)::bigint / bucket_s % 61 + 1)::integer
$$;
