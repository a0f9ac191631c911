-- Proof that both sides are equal: what was found, what was repaired, which rows the stream touched. All of it lives in
-- the service's database; the monolith's journal holds the head of the ledger.

CREATE TABLE strangler.ledger (
    id bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    plan text NOT NULL,
    slice text,
    operator text NOT NULL,
    host text NOT NULL,
    epoch bigint,
    lsn pg_lsn,
    plan_hash text,
    body json NOT NULL,
    previous bytea NOT NULL CHECK (length(previous) = 32),
    hash bytea NOT NULL UNIQUE CHECK (length(hash) = 32)
);
COMMENT ON TABLE strangler.ledger IS
    'Append-only evidence. Each row holds the hash of the row before it, so that a change or a gap shows';
COMMENT ON COLUMN strangler.ledger.body IS 'json and not jsonb: the hash is over the text as it was written';

CREATE FUNCTION strangler.ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'strangler.ledger is append-only' USING ERRCODE = '25006',
        HINT = 'an entry is never changed or taken out; a correction is a new entry';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON strangler.ledger
    FOR EACH STATEMENT EXECUTE FUNCTION strangler.ledger_is_append_only();

CREATE TABLE strangler.reconcile_run (
    run uuid PRIMARY KEY,
    slice text NOT NULL,
    options json NOT NULL,
    plan_hash text NOT NULL,
    epoch bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'finished', 'given_up')),
    host text NOT NULL,
    pid int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX ON strangler.reconcile_run (slice, started_at);

CREATE TABLE strangler.reconcile_chunk (
    run uuid NOT NULL REFERENCES strangler.reconcile_run ON DELETE CASCADE,
    source_table text NOT NULL,
    number int NOT NULL,
    lo text[],
    hi text[],
    lsn pg_lsn NOT NULL,
    rows_authority bigint NOT NULL,
    rows_copy bigint NOT NULL,
    findings json NOT NULL,
    PRIMARY KEY (run, source_table, number)
);
COMMENT ON TABLE strangler.reconcile_chunk IS 'Chunks (lo, hi] that a run has compared and settled; null is open';

CREATE TABLE strangler.touched (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slice text NOT NULL,
    source_table text NOT NULL,
    lsn pg_lsn NOT NULL,
    keys json,
    key_count int NOT NULL
);
COMMENT ON TABLE strangler.touched IS
    'Keys whose rows the stream wrote, one row per table and applied batch; keys is null when there were too many to list';

CREATE TABLE strangler.touched_floor (
    slice text NOT NULL,
    source_table text NOT NULL,
    lsn pg_lsn NOT NULL,
    PRIMARY KEY (slice, source_table)
);
COMMENT ON COLUMN strangler.touched_floor.lsn IS 'What was touched at or before this position is no longer listed';

CREATE TABLE strangler.repair (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run uuid NOT NULL,
    slice text NOT NULL,
    source_table text NOT NULL,
    key text[] NOT NULL,
    finding text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    requested_by text NOT NULL,
    state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'done', 'refused')),
    detail text,
    done_at timestamptz,
    lsn pg_lsn
);
CREATE INDEX ON strangler.repair (slice, id) WHERE state = 'requested';
COMMENT ON TABLE strangler.repair IS 'Rows that the running mirror is asked to read from the authority again';
