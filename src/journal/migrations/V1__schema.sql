-- Everything that strangler keeps, in the database that it is about. The same on the monolith and on a service:
-- a stream row lives in the target of its direction, copy state in the service, gate rows and the journal in both.

CREATE TABLE strangler.database (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    uuid uuid NOT NULL DEFAULT gen_random_uuid(),
    system_identifier text NOT NULL,
    database_oid oid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.database IS 'Identity of this database; a clone or restore is told by its other system identifier or oid';

CREATE TABLE strangler.slice (
    slice text PRIMARY KEY,
    plan text NOT NULL,
    service text NOT NULL,
    side text NOT NULL CHECK (side IN ('monolith', 'service')),
    lock_key int GENERATED ALWAYS AS IDENTITY UNIQUE,
    plan_hash text NOT NULL,
    publication text NOT NULL,
    provisioned_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN strangler.slice.lock_key IS 'Second key of the gate''s advisory lock in this database';

CREATE TABLE strangler.stream (
    slice text NOT NULL,
    dir text NOT NULL CHECK (dir IN ('forward', 'reverse')),
    lane int NOT NULL DEFAULT 0,
    epoch bigint NOT NULL,
    mode text NOT NULL CHECK (mode IN ('APPLY', 'TRIPWIRE', 'OFF')),
    state text NOT NULL CHECK (state IN ('creating', 'running', 'gap', 'diverged')),
    detail text,
    slot text NOT NULL,
    publication text NOT NULL,
    src_system_identifier text NOT NULL,
    src_database_oid oid NOT NULL,
    src_uuid uuid NOT NULL,
    src_timeline int NOT NULL,
    applied_lsn pg_lsn NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    source_time timestamptz,
    nonce bigint NOT NULL DEFAULT 0,
    holder text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slice, dir, lane)
) WITH (fillfactor = 10);
COMMENT ON COLUMN strangler.stream.source_time IS 'Time on the source at which its state was the one applied here';

CREATE TABLE strangler.mirror_table (
    slice text NOT NULL,
    source_table text NOT NULL,
    target_table text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'copying', 'live', 'diverged')),
    detail text,
    rows_copied bigint NOT NULL DEFAULT 0,
    bytes_copied bigint NOT NULL DEFAULT 0,
    rows_estimate bigint NOT NULL DEFAULT 0,
    copy_started_at timestamptz,
    live_at timestamptz,
    published_as oid,
    PRIMARY KEY (slice, source_table)
);
COMMENT ON COLUMN strangler.mirror_table.published_as IS
    'The monolith''s pg_publication_rel.oid since the copy began: another one means that changes in between are lost';

CREATE TABLE strangler.piece (
    slice text NOT NULL,
    source_table text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('range', 'whole', 'key')),
    lo text,
    hi text,
    key text[],
    snapshot text NOT NULL,
    lsn pg_lsn NOT NULL,
    rows bigint NOT NULL,
    UNIQUE (slice, source_table, kind, lo, hi, key)
);
COMMENT ON TABLE strangler.piece IS 'Copied pieces whose snapshot still decides about events: (lo, hi], null is open';

CREATE TABLE strangler.part (
    slice text NOT NULL,
    source_table text NOT NULL,
    part int NOT NULL,
    parts int NOT NULL,
    snapshot text NOT NULL,
    rows bigint NOT NULL,
    PRIMARY KEY (slice, source_table, part)
);
COMMENT ON TABLE strangler.part IS 'Finished parts of a whole-table piece that is not complete; void after a restart';

CREATE TABLE strangler.mirror_process (
    slice text NOT NULL,
    dir text NOT NULL,
    nonce bigint NOT NULL,
    host text NOT NULL,
    pid int NOT NULL,
    phase text NOT NULL,
    detail text,
    lag_bytes bigint,
    lag_ms double precision,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    PRIMARY KEY (slice, dir)
) WITH (fillfactor = 10);

CREATE TABLE strangler.deferred (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slice text NOT NULL,
    target_table text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('index', 'constraint', 'foreign_key', 'statement')),
    object text NOT NULL,
    create_sql text NOT NULL,
    done_at timestamptz,
    UNIQUE (slice, target_table, kind, object)
);
COMMENT ON TABLE strangler.deferred IS 'Indexes and constraints that wait for the data: put in place once the last round is passed';

CREATE TABLE strangler.journal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    slice text,
    actor text NOT NULL,
    action text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE strangler.journal IS 'Append-only record of what was done';

CREATE VIEW strangler.freshness AS
    SELECT slice, dir AS direction, source_time AS as_of, now() - source_time AS age, state
    FROM strangler.stream WHERE mode = 'APPLY';
COMMENT ON VIEW strangler.freshness IS 'How old the mirrored data of each slice is';
