//! The slice's publication on the source of its stream: what it leaves out never arrives, and nothing else would say so.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Row};

use super::error::{MirrorError, Refusal};
use super::stream::StreamError;
use crate::journal::canaries;
use crate::journal::streams::{Direction, Mode};
use crate::name::{TableName, quote_ident};
use crate::postgres::places::{self, Places};
use crate::postgres::replication::ReplicationError;
use crate::problem::arm_anew;
use crate::words::shell_word;

/// Tables of a publication with the oid of their entry in it. An entry that was taken out and put back has another
/// oid: what changed in between is not in the stream.
pub type Published = BTreeMap<TableName, u32>;

/// A publication as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Its tables.
    pub tables: Published,
    /// It carries every kind of change, and those of partitions as their root's.
    pub whole: bool,
    /// Tables of which it leaves out rows or columns, quoted.
    pub restricted: Vec<String>,
}

/// Whose publication it is and what hangs on it: for words.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Publication.
    pub publication: &'a str,
    /// Slice.
    pub slice: &'a str,
    /// Which of its streams reads from it.
    pub direction: Direction,
    /// What that stream does. One that carries no row is begun anew without copying any.
    pub mode: Mode,
    /// Slot of the slice's stream, once that has begun.
    pub slot: Option<&'a str>,
}

/// Reads a publication; `None` when there is none of that name.
///
/// # Errors
/// [`MirrorError::Sql`].
pub async fn read(source: &Client, name: &str) -> Result<Option<Publication>, MirrorError> {
    // Row filters and column lists came with PostgreSQL 15, so the columns are looked for by name.
    let rows = source
        .query(
            "SELECT p.pubviaroot AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, \
                 n.nspname::text, c.relname::text, r.oid, \
                 coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL \
             FROM pg_publication p LEFT JOIN (pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace) ON r.prpubid = p.oid \
             WHERE p.pubname = $1 ORDER BY 2, 3",
            &[&name],
        )
        .await
        .map_err(MirrorError::sql("reading the publication"))?;
    let Some(first) = rows.first() else { return Ok(None) };
    let schemas = rows.iter().filter_map(|row| row.get::<_, Option<&str>>(1));
    let places =
        places::among(source, schemas).await.map_err(MirrorError::sql("reading where tables stand"))?;
    let mut found = Publication { tables: Published::new(), whole: first.get(0), restricted: Vec::new() };
    for (table, row) in rows.iter().filter_map(|row| Some((table_of(row, &places)?, row))) {
        if row.get(4) {
            found.restricted.push(table.sql());
        }
        found.tables.insert(table, row.get(3));
    }
    Ok(Some(found))
}

/// None for a publication without tables.
fn table_of(row: &Row, places: &Places) -> Option<TableName> {
    let (schema, name): (Option<String>, Option<String>) = (row.get(1), row.get(2));
    Some(places.named(schema?, name?))
}

impl Publication {
    /// Why the mirror must not go on over this publication: it does not hold exactly these tables, or it leaves out
    /// kinds of change, rows or columns.
    #[must_use]
    pub fn fault<'a>(
        &self,
        wanted: impl Iterator<Item = &'a TableName>,
        named: Named<'_>,
    ) -> Option<Refusal> {
        self.strange(wanted, named).or_else(|| self.partial(named))
    }

    /// A table that was dropped and made again, or renamed, has left it or carries another name, and its changes would
    /// not come.
    fn strange<'a>(&self, wanted: impl Iterator<Item = &'a TableName>, named: Named<'_>) -> Option<Refusal> {
        let Named { publication, slice, direction, .. } = named;
        let side = direction.source();
        let list =
            |names: Vec<&TableName>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let wanted: BTreeSet<&TableName> = wanted.collect();
        let missing = list(wanted.iter().filter(|name| !self.tables.contains_key(**name)).copied().collect());
        let others: Vec<&TableName> =
            self.tables.keys().filter(|name| !wanted.contains(name) && !is_canary(name)).collect();
        let superfluous = others.iter().map(|name| name.sql()).collect::<Vec<_>>().join(", ");
        let strange = list(others);
        let what = match (missing.is_empty(), strange.is_empty()) {
            (true, true) => return None,
            (false, true) => format!("it lacks {missing}"),
            (true, false) => format!("it also holds {strange}"),
            (false, false) => format!("it lacks {missing} and holds {strange}"),
        };
        Some(Refusal {
            what: format!(
                "publication {publication} of the {side} is not what was made for slice {slice}: {what}"
            ),
            next: match direction {
                Direction::Forward if missing.is_empty() => format!(
                    "run on the {side}: ALTER PUBLICATION {} DROP TABLE {superfluous}; then strangler mirror PLAN --slice {slice}",
                    quote_ident(publication),
                ),
                Direction::Forward => format!(
                    "put back on the {side} what it lacks, with ALTER PUBLICATION {} ADD TABLE or RENAME; then {}",
                    quote_ident(publication),
                    match watched_anew(named) {
                        Some(anew) => anew,
                        None => format!(
                            "strangler mirror PLAN --slice {slice} --retry TABLE, which copies that table again"
                        ),
                    }
                ),
                Direction::Reverse => format!(
                    "give tables of the {side} that were renamed their names back; then {}; then {}",
                    arm_anew(slice),
                    compare(slice)
                ),
            },
            anew: direction == Direction::Reverse,
        })
    }

    fn partial(&self, named: Named<'_>) -> Option<Refusal> {
        let name = quote_ident(named.publication);
        let (mut facts, mut remedies) = (Vec::new(), Vec::new());
        for table in &self.restricted {
            facts.push(format!("leaves out rows or columns of {table}"));
            remedies.push(format!(
                "ALTER PUBLICATION {name} DROP TABLE {table}; the same with ADD TABLE {table};"
            ));
        }
        if !self.whole {
            facts.push("does not carry every kind of change".to_owned());
        }
        if !self.whole && named.direction == Direction::Forward {
            remedies.push(format!(
                "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate', \
                 publish_via_partition_root = true);"
            ));
        }
        if facts.is_empty() {
            return None;
        }
        Some(Refusal {
            what: format!(
                "the publication {} {}: changes made since then are missing from the stream",
                named.publication,
                facts.join(", ")
            ),
            next: match (remedies.join(" "), named.direction) {
                (by_hand, Direction::Forward) => match watched_anew(named) {
                    Some(anew) => format!("on the monolith: {by_hand} Then {anew}"),
                    None => format!(
                        "on the monolith: {by_hand} Then strangler mirror PLAN --slice {} --rebuild",
                        named.slice
                    ),
                },
                // What it carries, `arm` puts right itself.
                (by_hand, Direction::Reverse) if by_hand.is_empty() => {
                    format!("{}; then {}", arm_anew(named.slice), compare(named.slice))
                }
                (by_hand, Direction::Reverse) => format!(
                    "on the service: {by_hand} Then {}; then {}",
                    arm_anew(named.slice),
                    compare(named.slice)
                ),
            },
            anew: named.direction == Direction::Reverse,
        })
    }
}

/// The table that a publication may hold beside those of the mapping: it proves that the way is open.
pub(super) fn is_canary(name: &TableName) -> bool {
    (name.schema.as_str(), name.name.as_str()) == canaries::TABLE
}

/// What brings the monolith back to what the service has.
pub(super) fn compare(slice: &str) -> String {
    format!("strangler reconcile PLAN --slice {slice} --repair, which finds what is missing and brings it")
}

/// What begins a stream anew that only watches over a closed monolith; `None` for any other.
#[must_use]
pub fn watched_anew(named: Named<'_>) -> Option<String> {
    let watches = named.direction == Direction::Forward && named.mode == Mode::Tripwire;
    watches.then(|| watch_anew(named.slice))
}

/// The command that begins the watch over a closed monolith anew, and the one that finds what nobody looked at meanwhile.
#[must_use]
pub fn watch_anew(slice: &str) -> String {
    format!(
        "strangler mirror PLAN --slice {slice} --rebuild, which begins it anew and copies nothing; then strangler \
         reconcile PLAN --slice {slice}"
    )
}

/// Why the mirror must not go on: the publication is gone, or was for a while. A stream that has begun can't be
/// followed over that, because the server looks for a publication as it was when the change was made.
#[must_use]
pub fn gone(named: Named<'_>) -> Refusal {
    let Named { publication, slice, direction, slot, .. } = named;
    let side = direction.source();
    let (provision, anew) = match direction {
        Direction::Forward => (
            format!("strangler provision PLAN --slice {slice}, which makes it again"),
            watched_anew(named).unwrap_or_else(|| {
                format!("strangler mirror PLAN --slice {slice} --rebuild, which copies the slice again")
            }),
        ),
        Direction::Reverse => (arm_anew(slice), compare(slice)),
    };
    match slot {
        None => Refusal {
            what: format!("the publication {publication} of slice {slice} is not there on the {side}"),
            next: provision,
            anew: direction == Direction::Reverse,
        },
        Some(slot) => Refusal {
            what: format!(
                "the publication {publication} of slice {slice} is or was gone from the {side}: what changed without \
                 it can't be read from the slot {slot}"
            ),
            next: match direction {
                Direction::Forward => format!("{provision} where it is missing; then {anew}"),
                Direction::Reverse => format!("{provision}; then {anew}"),
            },
            anew: direction == Direction::Reverse,
        },
    }
}

/// Tables of which the publication holds another entry than before.
#[must_use]
pub fn came_back(before: &Published, now: &Published, named: Named<'_>) -> Option<Refusal> {
    let changed = before.iter().filter(|(table, entry)| now.get(table) != Some(entry));
    let tables: Vec<String> = changed.map(|(table, _)| table.to_string()).collect();
    if tables.is_empty() { None } else { Some(left(&tables, named)) }
}

/// Why the mirror must not go on over tables that were out of the publication for a while.
#[must_use]
pub fn left(tables: &[impl AsRef<str>], named: Named<'_>) -> Refusal {
    let slice = named.slice;
    let tables: Vec<&str> = tables.iter().map(AsRef::as_ref).collect();
    let retries: Vec<String> = tables.iter().map(|table| format!("--retry {}", shell_word(table))).collect();
    Refusal {
        what: format!(
            "{} {} left the publication of slice {slice} and came back: dropped and made again, or somebody changed \
             the publication; changes in between are not in the stream",
            if tables.len() == 1 { "the table" } else { "the tables" },
            tables.join(", ")
        ),
        next: match named.direction {
            Direction::Forward => watched_anew(named).unwrap_or_else(|| {
                format!(
                    "strangler mirror PLAN --slice {slice} {}, which copies what is named again",
                    retries.join(" ")
                )
            }),
            Direction::Reverse => format!("{}; then {}", arm_anew(slice), compare(slice)),
        },
        anew: named.direction == Direction::Reverse,
    }
}

/// The same as [`gone`], when that is what the stream's error says. The server's words are in its own language; the
/// SQLSTATE (42704, undefined object) and the name are not.
#[must_use]
pub fn explain(error: MirrorError, named: Named<'_>) -> MirrorError {
    if let MirrorError::Stream(StreamError::Replication(ReplicationError::Server {
        sqlstate, message, ..
    })) = &error
        && sqlstate == "42704"
        && message.contains(named.publication)
    {
        return gone(named).into();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Named<'_> = Named {
        publication: "pub",
        slice: "one",
        direction: Direction::Forward,
        mode: Mode::Apply,
        slot: Some("slot"),
    };

    fn holding(tables: &[&str]) -> Publication {
        let tables = tables.iter().zip(1..).map(|(name, oid)| (TableName::new("public", *name), oid));
        Publication { tables: tables.collect(), whole: true, restricted: Vec::new() }
    }

    fn fault(publication: &Publication) -> Option<String> {
        let wanted = [TableName::new("public", "a"), TableName::new("public", "b")];
        publication.fault(wanted.iter(), NAMED).map(|refusal| format!("{}; {}", refusal.what, refusal.next))
    }

    #[test]
    fn every_way_to_leave_something_out_is_a_fault() {
        assert_eq!(fault(&holding(&["a", "b"])), None);
        let says = |publication: &Publication, words: &str| {
            let fault = fault(publication).unwrap_or_default();
            assert!(fault.contains(words), "{words}: {fault}");
        };
        says(&holding(&["a"]), "it lacks b;");
        says(&holding(&["a", "b", "c"]), "it also holds c;");
        says(
            &holding(&["a", "b", "c"]),
            "ALTER PUBLICATION \"pub\" DROP TABLE \"public\".\"c\"; then strangler mirror",
        );
        let mut canary = holding(&["a", "b"]);
        canary.tables.insert(TableName::new("strangler", "canary"), 9);
        assert_eq!(fault(&canary), None, "the canary travels with the slice's tables");
        says(&holding(&["a", "c"]), "it lacks b and holds c;");
        says(&Publication { whole: false, ..holding(&["a", "b"]) }, "every kind of change");
        let restricted = vec!["\"public\".\"a\"".to_owned()];
        says(&Publication { restricted, ..holding(&["a", "b"]) }, "rows or columns of \"public\".\"a\"");
    }

    #[test]
    fn no_way_out_of_a_watch_that_carries_no_row_speaks_of_copying() {
        let watching = Named { mode: Mode::Tripwire, ..NAMED };
        let wanted = [TableName::new("public", "a"), TableName::new("public", "b")];
        let lacking = holding(&["a"]).fault(wanted.iter(), watching);
        let partial = Publication { whole: false, ..holding(&["a", "b"]) }.fault(wanted.iter(), watching);
        let both = [lacking.unwrap(), partial.unwrap(), gone(watching), left(&["a"], watching)];
        for refusal in both {
            let next = refusal.next;
            assert!(
                next.contains("--slice one --rebuild, which begins it anew and copies nothing"),
                "{next}"
            );
            assert!(next.ends_with("then strangler reconcile PLAN --slice one"), "{next}");
            assert!(!next.contains("again") || next.contains("which makes it again"), "{next}");
        }
        assert!(left(&["a"], NAMED).next.contains("--retry a"));
    }

    #[test]
    fn only_the_servers_word_about_this_publication_means_that_it_is_gone() {
        let said = |sqlstate: &str, message: &str| {
            let server = ReplicationError::Server {
                label: "monolith".into(),
                action: "stream",
                sqlstate: sqlstate.into(),
                message: message.into(),
            };
            matches!(
                explain(MirrorError::Stream(StreamError::Replication(server)), NAMED),
                MirrorError::Refused { .. }
            )
        };
        assert!(said("42704", "Publikation „pub“ existiert nicht"));
        assert!(!said("42704", "type \"mood\" does not exist"));
        assert!(!said("57P01", "publication \"pub\" does not exist"));
    }
}
