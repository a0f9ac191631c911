-- A publication FOR ALL TABLES, as change data capture makes one, publishes our tables too, and PostgreSQL refuses UPDATE and
-- DELETE of a published table whose rows nothing identifies (CREATE PUBLICATION). `piece` was the only one without a key: its
-- unique columns may be null.

ALTER TABLE strangler.piece ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT piece_identity PRIMARY KEY;
