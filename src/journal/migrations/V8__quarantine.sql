-- Where old tables stand that were moved away. All of it is kept on the monolith, and written in the transaction that moves them.

CREATE TABLE strangler.quarantine (
    slice text NOT NULL,
    schema_name text NOT NULL,
    quarantine text NOT NULL UNIQUE,
    PRIMARY KEY (slice, schema_name)
);
COMMENT ON TABLE strangler.quarantine IS
    'Schemas that old tables were moved into, one for each schema that tables of the slice came from; a table is known by the name that it had';

CREATE TABLE strangler.quarantined (
    slice text NOT NULL,
    relation_oid oid NOT NULL,
    schema_name text NOT NULL,
    relation text NOT NULL,
    PRIMARY KEY (slice, relation_oid)
);
COMMENT ON TABLE strangler.quarantined IS
    'Tables and partitions that were moved, by the names that they had; what belongs to them went with them';

ALTER TABLE strangler.retirement DROP CONSTRAINT retirement_stage_check;
ALTER TABLE strangler.retirement ADD CONSTRAINT retirement_stage_check CHECK (stage IN ('revoked', 'quarantined'));
