-- Where the old tables of a slice were archived. Kept on the monolith, beside how far they were taken away.

CREATE TABLE strangler.archive (
    slice text PRIMARY KEY,
    epoch bigint NOT NULL,
    place text NOT NULL,
    manifest_sha256 text NOT NULL CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    reverse_lsn pg_lsn NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.archive IS
    'The archive of a slice''s old tables, written once every byte of it was read back; no row while there is none';
COMMENT ON COLUMN strangler.archive.place IS 'Where its files are';
COMMENT ON COLUMN strangler.archive.manifest_sha256 IS 'Of the file manifest.json there; the ledger has it too';
COMMENT ON COLUMN strangler.archive.reverse_lsn IS 'Position in the service''s WAL up to which the archived rows have everything';
