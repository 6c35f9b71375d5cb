-- An IMMUTABLE function whose body is only STABLE (date_trunc with a zone, text cast to interval) is
-- called, not inlined; said as it is, a small batch of admissions takes a third less.
-- depends: 0009_admission

ALTER FUNCTION public.limit_window(text, timestamptz) STABLE;
ALTER FUNCTION public.limit_resets_at(text, timestamptz) STABLE;
