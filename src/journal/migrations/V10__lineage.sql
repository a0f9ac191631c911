-- Whether a database is still the one that a stream has read from: a copy of its files that is put back has the same identity, the same
-- timeline and, once it has written enough, a later position, and lacks what was read from it. The mirror counts a mark up in the source;
-- once everything that was written before it has come down the stream, the target notes that mark.

CREATE TABLE strangler.lineage (
    slice text NOT NULL,
    dir text NOT NULL CHECK (dir IN ('forward', 'reverse')),
    slot text NOT NULL,
    mark bigint NOT NULL,
    PRIMARY KEY (slice, dir)
);
COMMENT ON TABLE strangler.lineage IS
    'In the source of a stream the mark that its mirror counts up, in the target the last one that has come down the stream';
