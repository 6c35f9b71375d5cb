ALTER FUNCTION public.limit_window(text, timestamptz) IMMUTABLE;
ALTER FUNCTION public.limit_resets_at(text, timestamptz) IMMUTABLE;
