-- Slices whose old tables are dropped. A service holds the row of its slice from the moment when that is decided, and for good; the monolith
-- holds one from the transaction that drops the tables, until nothing of ours is left there.

CREATE TABLE strangler.dropped (
    slice text PRIMARY KEY,
    plan text NOT NULL,
    service text NOT NULL,
    monolith_system_identifier text NOT NULL,
    monolith_oid oid NOT NULL,
    monolith_uuid uuid NOT NULL,
    side text NOT NULL CHECK (side IN ('monolith', 'service')),
    epoch bigint NOT NULL,
    token text NOT NULL,
    place text NOT NULL,
    manifest_sha256 text NOT NULL CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    archived_at timestamptz NOT NULL,
    reverse_lsn pg_lsn NOT NULL,
    leftover json NOT NULL,
    fragment json NOT NULL,
    monolith_journal json,
    begun_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
COMMENT ON TABLE strangler.dropped IS 'Slices whose old tables are dropped, or are about to be';
COMMENT ON COLUMN strangler.dropped.monolith_uuid IS
    'With the system identifier and the oid: the database whose tables are dropped, by which it is told from any other that has none of them';
COMMENT ON COLUMN strangler.dropped.leftover IS 'Slots and publications of the slice, which go behind the tables';
COMMENT ON COLUMN strangler.dropped.fragment IS
    'What the monolith''s catalogs said of the tables: mappings that name them, and references to them, are compiled from it';
COMMENT ON COLUMN strangler.dropped.monolith_journal IS
    'The monolith''s journal, kept here when our schema went there with the last slice';
COMMENT ON COLUMN strangler.dropped.ended_at IS 'When nothing was left to do; null while there is';

-- Which way back had brought the rows of an archive. One that was begun anew since may read a service that lacks some of them.
ALTER TABLE strangler.archive ADD COLUMN way_back text;
COMMENT ON COLUMN strangler.archive.way_back IS 'Slot of the way back whose position reverse_lsn is';
