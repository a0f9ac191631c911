-- A TRUNCATE gives a table another file, as a crash that empties it does. The mirror's own is told from that by the file that it left.

ALTER TABLE strangler.mirror_table ADD COLUMN emptied_as text;
COMMENT ON COLUMN strangler.mirror_table.emptied_as IS
    'The files of the copy''s rows as the mirror''s last TRUNCATE of the whole table left them';
CREATE INDEX mirror_table_emptied ON strangler.mirror_table (slice) WHERE emptied_as IS NOT NULL;
