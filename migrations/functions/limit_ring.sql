-- Return a ring of 61 buckets as of an instant: buckets that have passed since bucket_at are zero.
CREATE OR REPLACE FUNCTION public.limit_ring(
    buckets bigint[], bucket_at timestamptz, bucket_s integer, instant timestamptz
) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    newest bigint := floor(extract(epoch FROM bucket_at) / bucket_s);
    running bigint := floor(extract(epoch FROM instant) / bucket_s);
BEGIN
    IF buckets IS NULL OR running - newest > 60 THEN
        RETURN array_fill(0::bigint, ARRAY[61]);
    END IF;
    FOR passed IN newest + 1 .. running LOOP
        buckets[passed % 61 + 1] := 0;
    END LOOP;
    RETURN buckets;
END
$$;
