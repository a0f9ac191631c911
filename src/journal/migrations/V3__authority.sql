-- Moving the authority: what arm takes away and disarm brings back, what a tripwire saw, who is at work.

CREATE TABLE strangler.cut_key (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slice text NOT NULL,
    child_table text NOT NULL,
    name text NOT NULL,
    columns text[] NOT NULL,
    parent_table text NOT NULL,
    referenced_columns text[] NOT NULL,
    on_delete text NOT NULL,
    definition text NOT NULL,
    validated boolean NOT NULL,
    comment text,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    restored_at timestamptz
);
CREATE UNIQUE INDEX ON strangler.cut_key (child_table, name) WHERE restored_at IS NULL;
COMMENT ON TABLE strangler.cut_key IS
    'Foreign keys of the monolith across the cut, dropped by arm: written down in the transaction that drops them';

CREATE TABLE strangler.alarm (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slice text NOT NULL,
    dir text NOT NULL CHECK (dir IN ('forward', 'reverse')),
    epoch bigint NOT NULL,
    lsn pg_lsn NOT NULL,
    xid bigint NOT NULL,
    source_table text NOT NULL,
    operation text NOT NULL CHECK (operation IN ('insert', 'update', 'delete', 'truncate')),
    key text[],
    raised_at timestamptz NOT NULL DEFAULT now(),
    cleared_at timestamptz,
    cleared_by text,
    UNIQUE (slice, dir, lsn, source_table, operation, key)
);
COMMENT ON TABLE strangler.alarm IS
    'In the service: writes on a fenced side that were not the mirror''s. dir names the stream that met them; key is null for truncate';

CREATE TABLE strangler.canary (
    slice text NOT NULL,
    dir text NOT NULL CHECK (dir IN ('forward', 'reverse')),
    nonce text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (slice, dir)
);
COMMENT ON TABLE strangler.canary IS
    'A row that travels with the stream of its direction in any mode, to prove that the way is open and rows arrive';

CREATE TABLE strangler.move_group (
    id bigint PRIMARY KEY,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'open', 'aborted')),
    members json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    decided_at timestamptz
);
COMMENT ON TABLE strangler.move_group IS
    'On the monolith: slices that move together. No side of theirs opens while it is pending; it is decided once';

CREATE TABLE strangler.operator (
    slice text PRIMARY KEY,
    verb text NOT NULL,
    operator text NOT NULL,
    host text NOT NULL,
    pid int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE strangler.operator IS 'Who works at a slice''s authority: a courtesy to others, safety rests on the gates';

CREATE TABLE strangler.baseline (
    slice text NOT NULL,
    source_table text NOT NULL,
    contents json NOT NULL,
    emptied_by text[] NOT NULL DEFAULT '{}',
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slice, source_table)
);
COMMENT ON TABLE strangler.baseline IS
    'What the monolith''s tables consisted of when they were last looked at: what changes them without an event shows against it';

-- Gates made by earlier versions get the column that later ones are born with.
DO $$
DECLARE
    gate name;
BEGIN
    FOR gate IN SELECT 'gate_' || slice FROM strangler.slice LOOP
        EXECUTE format('ALTER TABLE strangler.%I ADD COLUMN IF NOT EXISTS move_group bigint', gate);
    END LOOP;
END $$;

CREATE FUNCTION strangler.authority_rows() RETURNS TABLE (slice text, side text, state text, owner text, epoch bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known record;
BEGIN
    FOR known IN SELECT s.slice, s.side FROM strangler.slice AS s ORDER BY s.slice LOOP
        RETURN QUERY EXECUTE format(
            'SELECT $1, $2, g.state, g.owner, g.epoch FROM strangler.%I AS g', 'gate_' || known.slice)
            USING known.slice, known.side;
    END LOOP;
END $$;
CREATE VIEW strangler.authority AS SELECT * FROM strangler.authority_rows();
COMMENT ON VIEW strangler.authority IS
    'Who owns each slice, as this database knows: it may be written here while state is OPEN. NOTIFY strangler_authority tells of changes';
GRANT USAGE ON SCHEMA strangler TO PUBLIC;
GRANT SELECT ON strangler.authority TO PUBLIC;
