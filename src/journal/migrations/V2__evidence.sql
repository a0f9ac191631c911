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
CREATE INDEX ON strangler.ledger (slice, kind, id);

CREATE FUNCTION strangler.append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = '25006',
        HINT = 'an entry is never changed or taken out; a correction is a new entry';
END $$;
-- ALWAYS, because the apply role's sessions run with session_replication_role = replica, where other triggers are quiet.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON strangler.ledger
    FOR EACH STATEMENT EXECUTE FUNCTION strangler.append_only();
ALTER TABLE strangler.ledger ENABLE ALWAYS TRIGGER append_only;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON strangler.journal
    FOR EACH STATEMENT EXECUTE FUNCTION strangler.append_only();
ALTER TABLE strangler.journal ENABLE ALWAYS TRIGGER append_only;
CREATE INDEX journal_ledger_head ON strangler.journal ((detail ->> 'database'), ((detail ->> 'id')::bigint))
    WHERE action = 'ledger-head';
COMMENT ON INDEX strangler.journal_ledger_head IS 'Heads of the services'' ledgers, as the monolith''s journal keeps them';

ALTER TABLE strangler.mirror_table ADD COLUMN copy_number int NOT NULL DEFAULT 1;
COMMENT ON COLUMN strangler.mirror_table.copy_number IS
    'Grows each time the table''s rows stop counting as copied, so that evidence about earlier ones is told apart';

CREATE TABLE strangler.reconcile_run (
    run uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    slice text NOT NULL,
    options text NOT NULL,
    ground json NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'given_up')),
    attempt int NOT NULL DEFAULT 1,
    operator text NOT NULL,
    host text NOT NULL,
    pid int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resumed_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
CREATE INDEX ON strangler.reconcile_run (slice, started_at);
COMMENT ON COLUMN strangler.reconcile_run.ground IS
    'What the compared data rested on when the run began: mapping, epoch, stream, copies and shapes of the tables';
COMMENT ON COLUMN strangler.reconcile_run.attempt IS 'Grows with every resumption: only the last one''s process may write';

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
CREATE INDEX ON strangler.touched (slice, source_table, lsn);
-- Written with every batch and soon deleted: to compress it costs more than it saves.
ALTER TABLE strangler.touched ALTER keys SET STORAGE EXTERNAL;

CREATE TABLE strangler.touched_floor (
    slice text NOT NULL,
    source_table text NOT NULL,
    lsn pg_lsn NOT NULL,
    PRIMARY KEY (slice, source_table)
);
COMMENT ON COLUMN strangler.touched_floor.lsn IS 'What was touched at or before this position is not listed: the list begins when the table goes live, and is bounded';

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
