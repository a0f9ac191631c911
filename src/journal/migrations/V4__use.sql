-- Who still uses the old tables after authority has moved away from them. All of it is kept on the monolith.

CREATE TABLE strangler.own_scan (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slice text NOT NULL,
    source_table text NOT NULL,
    scans bigint NOT NULL,
    rows bigint NOT NULL
);
CREATE INDEX ON strangler.own_scan (slice);
COMMENT ON TABLE strangler.own_scan IS
    'Scans of old tables that were ours, written in the transaction that made them; folded into table_use and deleted';

CREATE TABLE strangler.table_use (
    slice text NOT NULL,
    source_table text NOT NULL,
    epoch bigint NOT NULL,
    since timestamptz NOT NULL,
    own_scans bigint NOT NULL,
    own_rows bigint NOT NULL,
    scans bigint NOT NULL,
    rows bigint NOT NULL,
    scans_by_others bigint NOT NULL DEFAULT 0,
    rows_by_others bigint NOT NULL DEFAULT 0,
    unseen_from timestamptz,
    unseen_until timestamptz,
    after_at timestamptz,
    last_at timestamptz,
    sampled_at timestamptz NOT NULL,
    PRIMARY KEY (slice, source_table)
);
COMMENT ON TABLE strangler.table_use IS
    'Scans of old tables as the server counts them, with ours subtracted: what others have read since authority moved';
COMMENT ON COLUMN strangler.table_use.scans IS 'What the server counted at the last look, without ours; the same for rows';
COMMENT ON COLUMN strangler.table_use.after_at IS 'The last reading by others lies between this sample and last_at';
COMMENT ON COLUMN strangler.table_use.unseen_from IS 'The server''s counters were lost: nobody knows what was read between this and unseen_until';

CREATE TABLE strangler.table_user (
    slice text NOT NULL,
    source_table text NOT NULL,
    how text NOT NULL CHECK (how IN ('session', 'statement')),
    role text NOT NULL,
    application text NOT NULL,
    client text NOT NULL,
    statement_id bigint NOT NULL,
    statement text NOT NULL,
    calls bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz,
    PRIMARY KEY (slice, source_table, how, role, application, client, statement_id)
);
COMMENT ON TABLE strangler.table_user IS
    'Whoever was met using an old table: sessions that held a lock on it, and statements that name it, without constants';
COMMENT ON COLUMN strangler.table_user.last_at IS 'Null for a statement that was there before and has not run since';
