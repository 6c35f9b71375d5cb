-- Render a value as a cell of CSV (RFC 4180); null becomes the empty cell.
--
-- Text that a spreadsheet would run as a formula gets an apostrophe before it.
CREATE OR REPLACE FUNCTION public.csv_cell(cell text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN cell IS NULL THEN ''
        WHEN cell ~ '[",\r\n]' OR cell ~ '^[-=+@\t]'
        THEN '"' || CASE WHEN cell ~ '^[-=+@\t\r]' THEN '''' ELSE '' END
                 || replace(cell, '"', '""') || '"'
        ELSE cell
    END
$$;
