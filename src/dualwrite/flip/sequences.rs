//! Sequences that feed columns of moved tables, on both sides: the new owner's are set ahead of everything that either side
//! ever gave out, so that no id is given twice.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::FlipError;
use crate::authority::Side;
use crate::mapping::SliceMapping;
use crate::name::TableName;
use crate::postgres::ask::Ask;
use crate::postgres::sqlstate;

/// A sequence on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its name.
    pub name: TableName,
    /// What nextval adds; negative for a descending one.
    pub increment: i64,
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
    /// Behind the last value it begins anew.
    pub cycle: bool,
}

/// A column that a sequence feeds on at least one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// `table.column` by the monolith's names; the name under which the fence notes the value.
    pub label: String,
    /// On the monolith.
    pub monolith: Option<Sequence>,
    /// On the service.
    pub service: Option<Sequence>,
}

/// All of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<Pair>);

/// Where a sequence stood under the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// `last_value`.
    pub last: i64,
    /// `is_called`: without it `last` was not given out yet.
    pub called: bool,
}

/// Values by label.
pub type Stands = BTreeMap<String, Stand>;

/// The sequences that a column's default or identity draws from; where it has neither, the one that it owns, from which the
/// application draws by itself.
const SQL: &str = "
SELECT w.place, n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (rel, col, place)
JOIN pg_attribute a ON a.attrelid = to_regclass(w.rel) AND a.attname = w.col AND NOT a.attisdropped
JOIN LATERAL (
    SELECT d.objid AS oid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND (d.deptype = 'i' OR d.deptype = 'a' AND NOT EXISTS (
            SELECT FROM pg_attrdef f WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum))
    UNION SELECT d.refobjid FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
        AND d.refclassid = 'pg_class'::regclass WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum
) AS q ON true
JOIN pg_sequence s ON s.seqrelid = q.oid
JOIN pg_class c ON c.oid = q.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY w.place";

impl Pairs {
    /// Finds them in the catalogs of both sides.
    ///
    /// # Errors
    /// [`FlipError::Failed`].
    pub async fn find(
        monolith: &Client,
        service: &Client,
        mapping: &SliceMapping,
    ) -> Result<Self, FlipError> {
        let (there, here) = tokio::try_join!(
            of_side(monolith, mapping, Side::Monolith),
            of_side(service, mapping, Side::Service)
        )?;
        let mut pairs: Vec<Pair> = Vec::new();
        for (place, label) in labels(mapping).into_iter().enumerate() {
            let (monolith, service) = (there.get(&place).cloned(), here.get(&place).cloned());
            if monolith.is_some() || service.is_some() {
                pairs.push(Pair { label, monolith, service });
            }
        }
        Ok(Self(pairs))
    }

    /// Reads where a side's sequences stand. With the gate's lock held nobody who writes moves them on.
    ///
    /// # Errors
    /// What the server said.
    pub async fn read(&self, client: &impl Ask, side: Side) -> Result<Stands, tokio_postgres::Error> {
        let known = self.0.iter().filter_map(|pair| Some((&pair.label, pair.on(side)?)));
        let (labels, selects): (Vec<&String>, Vec<String>) = known
            .enumerate()
            .map(|(place, (label, sequence))| {
                (label, format!("SELECT {place}::int8, last_value, is_called FROM {}", sequence.name.sql()))
            })
            .unzip();
        if selects.is_empty() {
            return Ok(Stands::new());
        }
        let rows = client.ask(&selects.join(" UNION ALL "), &[]).await?;
        let stand = |row: &Row| -> Option<(String, Stand)> {
            let label = labels.get(usize::try_from(row.get::<_, i64>(0)).ok()?)?;
            Some(((*label).clone(), Stand { last: row.get(1), called: row.get(2) }))
        };
        Ok(rows.iter().filter_map(stand).collect())
    }

    /// Sets the sequences of the side that opens a margin ahead of what was noted under the lock, in the caller's transaction.
    ///
    /// `setval` outlives a transaction that is rolled back, so the value comes from what was noted and not from where the
    /// sequence stands: an opening that is tried again sets the same one. A sequence that was not noted is left alone.
    ///
    /// # Errors
    /// What the server said; [`SetError::is_full`] when a sequence has no room left.
    pub async fn set_ahead(
        &self,
        client: &impl Ask,
        side: Side,
        (noted, margin): (&Stands, u32),
    ) -> Result<(), SetError> {
        let one = async |feeds: &Feeds<'_>| {
            let sequence = feeds.sequence;
            let Some(furthest) = feeds.furthest(noted) else { return Ok(()) };
            let wanted = sequence.ahead(furthest, i64::from(margin));
            // Where it stands says nothing once it has begun anew.
            let value = match (sequence.cycle, sequence.increment < 0) {
                (true, _) => "$2",
                (false, true) => "least(last_value, $2)",
                (false, false) => "greatest(last_value, $2)",
            };
            let sql = format!("SELECT setval($1::text::regclass, {value}) FROM {}", sequence.name.sql());
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&sequence.name.sql(), Type::TEXT), (&wanted, Type::INT8)];
            let set = client.ask_one(&sql, &parameters).await;
            set.map(drop).map_err(|source| SetError { sequence: sequence.name.clone(), source })
        };
        // All are sent before the first answer is waited for.
        try_join_all(self.of_side(side).iter().map(one)).await.map(drop)
    }

    /// What a fence notes: for each column the furthest value that either side gave out, by the sequence of `to`, which opens.
    #[must_use]
    pub fn furthest(&self, to: Side, there: &Stands, here: &Stands) -> Stands {
        let mut stands = here.clone();
        for pair in &self.0 {
            let (Some(sequence), Some(there)) = (pair.on(to), there.get(&pair.label)) else { continue };
            let last = match stands.get(&pair.label) {
                // Of two that begin anew, the one that was in use tells.
                Some(_) if sequence.cycle => there.last,
                Some(here) if sequence.increment < 0 => here.last.min(there.last),
                Some(here) => here.last.max(there.last),
                None => there.last,
            };
            stands.insert(pair.label.clone(), Stand { last, called: true });
        }
        stands
    }

    /// Each sequence of a side once, however many columns it feeds: a move skips the margin once for each.
    fn of_side(&self, side: Side) -> Vec<Feeds<'_>> {
        let mut all: Vec<Feeds<'_>> = Vec::new();
        for pair in &self.0 {
            let Some(sequence) = pair.on(side) else { continue };
            match all.iter_mut().find(|feeds| feeds.sequence.name == sequence.name) {
                Some(feeds) => feeds.labels.push(&pair.label),
                None => all.push(Feeds { sequence, labels: vec![&pair.label] }),
            }
        }
        all
    }

    /// Columns whose sequences on `side` have no room for so many more moves. `stands` are those of both sides, the furthest
    /// of each column.
    #[must_use]
    pub fn short(&self, stands: &Stands, side: Side, (margin, moves): (u32, i64)) -> Vec<String> {
        let room = |feeds: &Feeds<'_>| -> bool {
            let Some(last) = feeds.furthest(stands) else { return true };
            let sequence = feeds.sequence;
            let ahead = sequence.ahead(last, i64::from(margin).saturating_mul(moves));
            (sequence.min..=sequence.max).contains(&ahead)
        };
        let short = self.of_side(side).into_iter().filter(|feeds| !room(feeds));
        short.flat_map(|feeds| feeds.labels).map(str::to_owned).collect()
    }
}

/// A sequence could not be set.
#[derive(Debug, thiserror::Error)]
#[error("the sequence {sequence} could not be set")]
pub struct SetError {
    /// Which.
    pub sequence: TableName,
    /// What the server said.
    pub source: tokio_postgres::Error,
}

impl SetError {
    /// The value is beyond the sequence's bounds (SQLSTATE 22003), which waiting does not change.
    #[must_use]
    pub fn is_full(&self) -> bool {
        sqlstate::code(&self.source) == Some("22003")
    }
}

impl Sequence {
    /// The value that lies so many increments behind `last`, beyond the bounds where there is no room. A sequence that begins
    /// anew always has room.
    fn ahead(&self, last: i64, increments: i64) -> i64 {
        let far = i128::from(last) + i128::from(self.increment) * i128::from(increments);
        let (min, max) = (i128::from(self.min), i128::from(self.max));
        if !self.cycle || (min..=max).contains(&far) || self.increment == 0 {
            return i64::try_from(far).unwrap_or(if far < 0 { i64::MIN } else { i64::MAX });
        }
        // Values that one round gives out, and how many of them are behind `last`.
        let step = i128::from(self.increment).abs();
        let (start, left) = if self.increment < 0 {
            (max, (i128::from(last) - min) / step)
        } else {
            (min, (max - i128::from(last)) / step)
        };
        let round = (max - min) / step + 1;
        let place = (i128::from(increments) - left - 1).max(0) % round;
        i64::try_from(start + place * i128::from(self.increment)).unwrap_or(last)
    }
}

/// A sequence with the columns that it feeds.
struct Feeds<'a> {
    sequence: &'a Sequence,
    labels: Vec<&'a str>,
}

impl Feeds<'_> {
    /// The furthest value that was noted for any of its columns.
    fn furthest(&self, stands: &Stands) -> Option<i64> {
        let values = self.labels.iter().filter_map(|label| stands.get(*label)).map(|stand| stand.last);
        if self.sequence.increment < 0 { values.min() } else { values.max() }
    }
}

impl Pair {
    /// The sequence on a side.
    #[must_use]
    pub fn on(&self, side: Side) -> Option<&Sequence> {
        match side {
            Side::Monolith => self.monolith.as_ref(),
            Side::Service => self.service.as_ref(),
        }
    }
}

fn labels(mapping: &SliceMapping) -> Vec<String> {
    let columns = mapping.tables.iter().flat_map(|table| {
        table.columns.iter().map(move |column| format!("{}.{}", table.source, column.source))
    });
    columns.collect()
}

async fn of_side(
    client: &Client,
    mapping: &SliceMapping,
    side: Side,
) -> Result<BTreeMap<usize, Sequence>, FlipError> {
    let columns = mapping.tables.iter().flat_map(|table| {
        let name = match side {
            Side::Monolith => &table.source,
            Side::Service => &table.target,
        };
        let column = move |column: &crate::mapping::ColumnMapping| match side {
            Side::Monolith => column.source.clone(),
            Side::Service => column.target.clone(),
        };
        table.columns.iter().map(move |mapped| (name.sql(), column(mapped)))
    });
    let (tables, columns): (Vec<String>, Vec<String>) = columns.unzip();
    let rows = client.query(SQL, &[&tables, &columns]).await;
    let rows = rows.map_err(|error| FlipError::Failed {
        what: "looking for sequences",
        words: sqlstate::words(&error),
    })?;
    let sequence = |row: &Row| -> Option<(usize, Sequence)> {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).ok()?;
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        Some((
            place,
            Sequence { name, increment: row.get(3), min: row.get(4), max: row.get(5), cycle: row.get(6) },
        ))
    };
    Ok(rows.iter().filter_map(sequence).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(max: i64) -> Option<Sequence> {
        Some(Sequence { name: TableName::new("public", "ids"), increment: 1, min: 1, max, cycle: false })
    }

    #[test]
    fn a_sequence_that_begins_anew_always_has_room_and_is_set_to_a_value_that_it_gives_out() {
        let round = |increment| Sequence { increment, cycle: true, ..sequence(10).unwrap() };
        let up = round(3);
        // It gives out 1, 4, 7, 10, 1 and so on.
        assert_eq!([1, 2, 3, 4, 7].map(|steps| up.ahead(4, steps)), [7, 10, 1, 4, 1]);
        let down = round(-3);
        assert_eq!([1, 2, 3].map(|steps| down.ahead(7, steps)), [4, 1, 10]);
        let pairs = Pairs(vec![Pair { label: "t.a".to_owned(), monolith: None, service: Some(up) }]);
        let stands: Stands = [("t.a".to_owned(), Stand { last: 10, called: true })].into();
        assert_eq!(pairs.short(&stands, Side::Service, (1000, 20)), [""; 0]);
    }

    #[test]
    fn what_a_fence_notes_is_the_furthest_that_either_side_gave_out() {
        let pair = Pair { label: "t.a".to_owned(), monolith: sequence(900), service: sequence(900) };
        let alone = Pair { label: "t.b".to_owned(), monolith: None, service: sequence(900) };
        let pairs = Pairs(vec![pair, alone]);
        let stands = |values: &[(&str, i64)]| -> Stands {
            let of = |(label, last): &(&str, i64)| ((*label).to_owned(), Stand { last: *last, called: true });
            values.iter().map(of).collect()
        };
        let (there, here) = (stands(&[("t.a", 7)]), stands(&[("t.a", 5), ("t.b", 3)]));
        assert_eq!(pairs.furthest(Side::Service, &there, &here), stands(&[("t.a", 7), ("t.b", 3)]));
    }

    #[test]
    fn a_sequence_that_feeds_two_columns_skips_the_margin_once() {
        let pair = |label: &str| Pair { label: label.to_owned(), monolith: None, service: sequence(300) };
        let pairs = Pairs(vec![pair("t.a"), pair("u.b")]);
        let feeds = pairs.of_side(Side::Service);
        assert_eq!(feeds.len(), 1);
        let stand = |last| Stand { last, called: true };
        let stands: Stands = [("t.a".to_owned(), stand(100)), ("u.b".to_owned(), stand(150))].into();
        assert_eq!(feeds[0].furthest(&stands), Some(150));
        assert_eq!(pairs.short(&stands, Side::Service, (100, 1)), [""; 0]);
        assert_eq!(
            pairs.short(&stands, Side::Service, (151, 1)),
            ["t.a", "u.b"],
            "the furthest of its columns counts"
        );
    }
}
