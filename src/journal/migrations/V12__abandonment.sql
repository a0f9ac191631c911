-- Slices that are being taken back, and the rights to take back with them.

CREATE TABLE strangler.abandonment (
    slice text PRIMARY KEY,
    plan text NOT NULL,
    token text NOT NULL,
    body json NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.abandonment IS
    'In the service: slices that abandon has begun to take back. No verb but abandon may touch one; the row goes with the slice''s last';
COMMENT ON COLUMN strangler.abandonment.token IS 'What was confirmed';
COMMENT ON COLUMN strangler.abandonment.body IS 'What the ledger is told at the end';

CREATE TABLE strangler.granted (
    catalog text NOT NULL CHECK (catalog IN ('pg_namespace', 'pg_class')),
    object oid NOT NULL,
    attnum smallint NOT NULL,
    grantee text NOT NULL,
    privilege text NOT NULL,
    PRIMARY KEY (catalog, object, attnum, grantee, privilege)
);
COMMENT ON TABLE strangler.granted IS
    'Rights outside this schema that provision and arm have granted: written in the transaction that grants them. What was there before is none of ours';
COMMENT ON COLUMN strangler.granted.attnum IS '0 for a right on the whole object';

-- Earlier versions did not write down what they granted. The role is the tool's own, so what it has, it was given for the slices.
INSERT INTO strangler.granted
    SELECT 'pg_namespace', n.oid, 0, r.rolname, a.privilege_type
    FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE r.rolname = 'strangler_apply' AND n.nspname <> 'strangler' AND EXISTS (SELECT FROM strangler.slice)
    UNION SELECT 'pg_class', c.oid, 0, r.rolname, a.privilege_type
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE r.rolname = 'strangler_apply' AND n.nspname <> 'strangler' AND EXISTS (SELECT FROM strangler.slice)
    UNION SELECT 'pg_class', c.oid, t.attnum, r.rolname, a.privilege_type
    FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL aclexplode(t.attacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE r.rolname = 'strangler_apply' AND n.nspname <> 'strangler' AND EXISTS (SELECT FROM strangler.slice);

CREATE TABLE strangler.home (
    slice text PRIMARY KEY,
    service text NOT NULL,
    uuid uuid NOT NULL,
    database text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.home IS
    'On the monolith: the database of the service that a slice was provisioned in first. Only there may abandon take it back';
COMMENT ON COLUMN strangler.home.uuid IS 'That of strangler.database there';
COMMENT ON COLUMN strangler.home.database IS 'Its name, for words to an operator';

CREATE TABLE strangler.begun_empty (
    slice text NOT NULL,
    target_table text NOT NULL,
    relation oid NOT NULL,
    PRIMARY KEY (slice, target_table, relation)
);
COMMENT ON TABLE strangler.begun_empty IS
    'In the service: tables that held no row when provision made or adopted them, each with its partitions of that moment. '
    'What is not here may hold rows of the service''s own, and abandon leaves it as it is';
