//! The tables of the workload, the plan that mirrors them, and how a side's rows are read back for comparison.

use tokio_postgres::Client;

use super::book::{Fields, Key};

/// One table of the workload. Every row belongs to one writer, except in `Accounts`, which all writers change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Small, serial key, shared: money moves between its rows, the sum never changes.
    Accounts,
    /// `bigint` key that changes often, and a second unique column whose values are passed between rows.
    Moves,
    /// Random uuid key: copied whole.
    Sessions,
    /// Composite key, one part of it text: copied whole.
    Places,
    /// More than 8 kB of text per row, stored out of line and mostly not touched.
    Documents,
    /// Bulk: 500 rows at a time, by INSERT and by COPY.
    Events,
    /// Emptied by TRUNCATE now and then.
    Scratch,
    /// One row per transaction: the business key by which an unknown outcome is resolved.
    Done,
}

impl Table {
    /// All tables.
    pub(crate) const ALL: [Self; 8] = [
        Self::Accounts,
        Self::Moves,
        Self::Sessions,
        Self::Places,
        Self::Documents,
        Self::Events,
        Self::Scratch,
        Self::Done,
    ];
    /// Tables of the plan's slice `keys`, service `left`.
    pub(crate) const LEFT: [Self; 4] = [Self::Accounts, Self::Moves, Self::Sessions, Self::Places];
    /// Tables of the plan's slice `papers`, service `right`.
    pub(crate) const RIGHT: [Self; 4] = [Self::Documents, Self::Events, Self::Scratch, Self::Done];

    /// Every column that the plan carries over, row by row, in the same order on both sides.
    pub(crate) fn query(self, side: Side) -> String {
        let name = |monolith, service| if side == Side::Monolith { monolith } else { service };
        match self {
            Self::Accounts => "SELECT id, balance FROM accounts".to_owned(),
            Self::Moves => name(
                r#"SELECT "Id", "Writer", "Seq", "Ticket", "Tag" FROM "Moves""#,
                r#"SELECT id, "Writer", "Seq", "Ticket", label FROM moves"#,
            )
            .to_owned(),
            Self::Sessions => "SELECT id, writer, seq, state FROM sessions".to_owned(),
            Self::Places => "SELECT region, slot, writer, seq, amount FROM places".to_owned(),
            Self::Documents => {
                format!("SELECT id, writer, seq, {}, body FROM documents", name("title", "heading"))
            }
            Self::Events => "SELECT id, writer, seq, n, payload FROM events".to_owned(),
            Self::Scratch => "SELECT id, writer, seq FROM scratch".to_owned(),
            Self::Done => "SELECT writer, seq, kind FROM done".to_owned(),
        }
    }
}

/// The schema of the workload, for an empty database.
pub(crate) const SCHEMA_SQL: &str = r#"
CREATE TABLE accounts (id serial PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE "Moves" ("Id" bigint PRIMARY KEY, "Writer" int NOT NULL, "Seq" bigint NOT NULL,
    "Ticket" bigint NOT NULL UNIQUE, "Tag" text NOT NULL, "Legacy" text NOT NULL DEFAULT 'old');
CREATE TABLE sessions (id uuid PRIMARY KEY, writer int NOT NULL, seq bigint NOT NULL, state text);
CREATE INDEX sessions_writer ON sessions (writer);
CREATE TABLE places (region int, slot text, writer int NOT NULL, seq bigint NOT NULL, amount numeric(12,2) NOT NULL,
    PRIMARY KEY (region, slot));
CREATE TABLE documents (id bigint PRIMARY KEY, writer int NOT NULL, seq bigint NOT NULL, title text NOT NULL, body text NOT NULL);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
CREATE TABLE events (id bigserial PRIMARY KEY, writer int NOT NULL, seq bigint NOT NULL, n int NOT NULL, payload text NOT NULL);
CREATE INDEX events_batch ON events (writer, seq);
CREATE TABLE scratch (id bigint PRIMARY KEY, writer int NOT NULL, seq bigint NOT NULL);
CREATE TABLE done (writer int, seq bigint, kind text NOT NULL, PRIMARY KEY (writer, seq));
"#;

/// A plan that mirrors the workload: two slices in two services, with a renamed table, renamed columns and a
/// dropped one. Needs the variables `MONOLITH_URL`, `LEFT_ADMIN_URL`, `LEFT_APPLY_URL` and the same for `RIGHT`.
pub(crate) const PLAN: &str = r#"version: 1
plan: workload
monolith:
  url: ${MONOLITH_URL}
services:
  left: { admin: "${LEFT_ADMIN_URL}", apply: "${LEFT_APPLY_URL}" }
  right: { admin: "${RIGHT_ADMIN_URL}", apply: "${RIGHT_APPLY_URL}" }
slices:
  keys:
    service: left
    tables:
      accounts: {}
      Moves:
        to: moves
        columns: { Id: id, Tag: label, Legacy: { drop: true } }
      sessions: {}
      places: {}
  papers:
    service: right
    tables:
      documents: { columns: { title: heading } }
      events: {}
      scratch: {}
      done: {}
"#;

/// On which side rows are read: the plan gives some names a new form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The names of [`SCHEMA_SQL`].
    Monolith,
    /// The names that [`PLAN`] gives.
    Service,
}

/// Reads a table's rows as the ledger keeps them: the key and the other columns as text. A key that comes twice
/// stands twice in the answer.
pub(crate) async fn read(client: &Client, table: Table, side: Side) -> Vec<(Key, Fields)> {
    let rows = client.query(&read_sql(table, side), &[]).await.expect("the workload's tables can be read");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn read_sql(table: Table, side: Side) -> String {
    let name = |monolith, service| if side == Side::Monolith { monolith } else { service };
    match table {
        Table::Accounts => "SELECT id::text, ARRAY[balance::text] FROM accounts".to_owned(),
        Table::Moves => format!(
            r#"SELECT {id}::text, ARRAY["Writer"::text, "Seq"::text, "Ticket"::text, {tag}] FROM {table}"#,
            id = name(r#""Id""#, "id"),
            tag = name(r#""Tag""#, "label"),
            table = name(r#""Moves""#, "moves"),
        ),
        Table::Sessions => {
            "SELECT id::text, ARRAY[writer::text, seq::text, coalesce(state, 'null')] FROM sessions".to_owned()
        }
        Table::Places => {
            "SELECT region || '/' || slot, ARRAY[writer::text, seq::text, amount::text] FROM places".to_owned()
        }
        // The body is one tag of 40 characters, repeated: the tag tells who wrote it, and the comparison that
        // nothing of it is lost.
        Table::Documents => format!(
            "SELECT id::text, ARRAY[writer::text, seq::text, {title}, coalesce(left(body, 40), 'null'),
                    CASE WHEN body = repeat(left(body, 40), {BODY_REPEATS}) THEN 'whole' ELSE 'torn' END] FROM documents",
            title = name("title", "heading"),
        ),
        // Batches are compared, not rows: a batch has no unique constraint of its own, so a row that came twice
        // is told by the counts.
        Table::Events => "SELECT writer || '/' || seq, ARRAY[count(*)::text, count(DISTINCT n)::text, sum(n)::text,
                    count(DISTINCT payload)::text, min(payload)] FROM events GROUP BY writer, seq"
            .to_owned(),
        Table::Scratch => "SELECT id::text, ARRAY[writer::text, seq::text] FROM scratch".to_owned(),
        Table::Done => "SELECT writer || '/' || seq, ARRAY[kind] FROM done".to_owned(),
    }
}

/// How often a document's body repeats its tag of 40 characters: 9,600 bytes, beyond the 8 kB of a page.
pub(crate) const BODY_REPEATS: usize = 240;
