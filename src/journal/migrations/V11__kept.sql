-- A copy that is made again over the rows of the last one, which are compared piece by piece and copied only where they differ.

ALTER TABLE strangler.mirror_table ADD COLUMN kept boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN strangler.mirror_table.kept IS
    'Nothing counts as copied, and the service''s table still has the rows of the last copy';
CREATE INDEX mirror_table_kept ON strangler.mirror_table (slice) WHERE kept;

-- Until they are compared nobody knows how old they are.
CREATE OR REPLACE VIEW strangler.freshness AS
    SELECT slice, dir AS direction, CASE WHEN NOT old THEN source_time END AS as_of,
        CASE WHEN NOT old THEN now() - source_time END AS age, state
    FROM strangler.stream s CROSS JOIN LATERAL (SELECT EXISTS (
        SELECT FROM strangler.mirror_table t WHERE t.slice = s.slice AND t.kept AND s.dir = 'forward') AS old) k
    WHERE mode = 'APPLY';
