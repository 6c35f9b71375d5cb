-- What the export of the ledger is written with: lines are made here rather than in the service, whose
-- calls would wait for them.
-- depends: 0012_operator_entries

-- US dollars as a plain decimal with at least two places.
CREATE FUNCTION public.usd_text(nanos bigint) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT regexp_replace((nanos::numeric / 1000000000)::numeric(30, 9)::text, '0{1,7}$', '')
$$;

-- A cell of CSV (RFC 4180), empty for null. Text that a spreadsheet would run as a formula gets an
-- apostrophe before it.
CREATE FUNCTION public.csv_cell(cell text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN cell IS NULL THEN ''
        WHEN cell ~ '[",\r\n]' OR cell ~ '^[-=+@\t]'
        THEN '"' || CASE WHEN cell ~ '^[-=+@\t\r]' THEN '''' ELSE '' END
                 || replace(cell, '"', '""') || '"'
        ELSE cell
    END
$$;
