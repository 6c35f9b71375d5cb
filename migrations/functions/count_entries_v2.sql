-- Count entries on limits: add what their calls used, give back what they held.
--
-- used and held are those of limits; the entries are returned with the windows in which they were
-- counted. Limits that are not locked are passed over.
CREATE OR REPLACE FUNCTION public.count_entries_v2(
    limit_ids uuid[], INOUT limits public.locked_limit[], INOUT used bigint[], INOUT held bigint[],
    INOUT entries public.entry_row[]
)
LANGUAGE plpgsql AS $$
DECLARE
    entry public.entry_row;
    is_call boolean;   -- which held what it could need
    is_moved boolean;  -- to other windows
    place integer;
    unused bigint;
    slot integer;
BEGIN
    FOR m IN 1 .. cardinality(entries) LOOP
        entry := entries[m];
        is_call := entry.kind = 'call';
        is_moved := false;
        FOR n IN 1 .. cardinality(entry.limit_ids) LOOP
            place := array_position(limit_ids, entry.limit_ids[n]);
            CONTINUE WHEN place IS NULL;
            IF limits[place].bucket_s IS NULL THEN
                used[place] := used[place] + CASE limits[place].unit
                    WHEN 'usd' THEN entry.cost_nanos
                    WHEN 'tokens' THEN entry.tokens
                    WHEN 'requests' THEN entry.requests
                    ELSE 0 END;
                IF is_call THEN
                    held[place] := held[place] - public.amount_of(
                        limits[place].unit, entry.bound_nanos, entry.bound_tokens, 1
                    );
                END IF;
                IF entry.limit_windows[n] <> limits[place].window_at THEN
                    entry.limit_windows[n] := limits[place].window_at;
                    is_moved := true;
                END IF;
                CONTINUE;
            END IF;
            -- Its bound was counted as used when it was admitted. What was not used is given back in
            -- the same bucket.
            unused := CASE WHEN NOT is_call THEN 0
                           WHEN limits[place].unit = 'tokens' THEN entry.bound_tokens
                           ELSE 1 END
                - CASE limits[place].unit WHEN 'tokens' THEN entry.tokens ELSE entry.requests END;
            IF unused <> 0 AND entry.limit_windows[n]
                > limits[place].window_at - 61 * limits[place].bucket_s * interval '1 second'
            THEN
                slot := public.slot_of(entry.limit_windows[n], limits[place].bucket_s);
                limits[place].ring[slot] := limits[place].ring[slot] - unused;
                limits[place].is_changed := true;
                used[place] := used[place] - unused;
            END IF;
        END LOOP;
        IF is_moved THEN
            entries[m] := entry;
        END IF;
    END LOOP;
END
$$;
