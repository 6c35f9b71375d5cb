-- A batch waits for a lock for 1.5 s at most, however long other statements may: calls wait for it,
-- and those that arrive meanwhile wait for theirs after it.
-- depends: 0030_counted_at

ALTER FUNCTION public.settle_and_admit(jsonb, boolean, jsonb, uuid, interval, integer)
    SET lock_timeout = '1500ms';
