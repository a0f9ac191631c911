-- How far old tables were taken away, and what it takes to bring everything back. All of it is kept on the monolith.

CREATE TABLE strangler.retirement (
    slice text PRIMARY KEY,
    stage text NOT NULL CHECK (stage IN ('revoked')),
    epoch bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.retirement IS 'How far the old tables of a slice have been taken away; no row while nothing was';

CREATE TABLE strangler.revoked_right (
    slice text NOT NULL,
    relation_oid oid NOT NULL,
    attnum smallint NOT NULL,
    grantee_oid oid NOT NULL,
    privilege text NOT NULL,
    grantable boolean NOT NULL,
    grantor text NOT NULL,
    relation_schema text NOT NULL,
    relation text NOT NULL,
    column_name text NOT NULL,
    grantee text NOT NULL,
    PRIMARY KEY (slice, relation_oid, attnum, grantee_oid, privilege)
);
COMMENT ON TABLE strangler.revoked_right IS
    'Rights on old tables that were taken away and not given back, each as the catalog had it: written in the transaction that takes them. '
    'They go back to the same relation, column and role, whatever its name is then; the names say which these were';
COMMENT ON COLUMN strangler.revoked_right.attnum IS '0 for a right on the whole table';
COMMENT ON COLUMN strangler.revoked_right.grantee_oid IS '0 for PUBLIC';
COMMENT ON COLUMN strangler.revoked_right.column_name IS 'Empty for a right on the whole table';
COMMENT ON COLUMN strangler.revoked_right.grantee IS 'Empty for PUBLIC';
COMMENT ON COLUMN strangler.revoked_right.grantor IS 'Who owned the relation: whoever does now gives the right back';
