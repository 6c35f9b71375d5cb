-- What Venice said of a key when it was last asked, so that every process and the operator know, and
-- one process alone reports a change.
-- depends: 0017_one_transaction

ALTER TABLE public.upstream_keys
    ADD COLUMN last_check text,
    ADD COLUMN condition text,
    ADD COLUMN condition_at timestamptz,
    ADD CONSTRAINT upstream_keys_last_check
        CHECK (last_check IN ('well', 'invalid', 'spent', 'forbidden', 'unreachable', 'failed')),
    ADD CONSTRAINT upstream_keys_condition
        CHECK (condition IN ('well', 'invalid', 'spent', 'forbidden'));

COMMENT ON COLUMN public.upstream_keys.condition IS
    'What Venice itself last said of the key; a check that did not reach Venice leaves it.';
