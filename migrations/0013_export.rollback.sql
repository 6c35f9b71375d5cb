DROP FUNCTION public.csv_cell(text);
DROP FUNCTION public.usd_text(bigint);
