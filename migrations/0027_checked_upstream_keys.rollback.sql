ALTER TABLE public.upstream_keys
    DROP COLUMN last_check,
    DROP COLUMN condition,
    DROP COLUMN condition_at;
