-- A copy that is made again over the rows of the last one, which are compared piece by piece and copied only where they differ.

ALTER TABLE strangler.mirror_table ADD COLUMN kept boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN strangler.mirror_table.kept IS
    'Nothing counts as copied, and the service''s table still has the rows of the last copy';
CREATE INDEX mirror_table_kept ON strangler.mirror_table (slice) WHERE kept;
