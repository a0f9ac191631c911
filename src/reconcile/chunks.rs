//! Which ranges of a table are compared next.
//!
//! Borders are chosen on the authority, every so many rows of the key's index, so that a table with gaps between its
//! keys is cut as evenly as one without. Where a single integer key has few gaps they are reckoned instead, which spares
//! reading the index: keys are unique, so a range holds at most as many rows as it is wide. How many rows a chunk has
//! follows from how long the last one took.

use std::time::Duration;

use super::form::TableForm;
use super::reader::{ReadError, Reader};
use super::statements::KeyRange;
use super::walk::Walk;
use crate::journal::runs;

/// Time that a chunk is meant to keep one side busy: long enough that the way to and fro does not count, short enough
/// that nobody waits for its snapshot.
const CHUNK_TIME: Duration = Duration::from_millis(200);
/// Rows of the first chunk of a table.
const ROWS_FIRST: i64 = 10_000;
/// Fewest and most rows of a chunk: a part of it holds at least a few rows, and bounded many.
const ROWS_MIN: i64 = 640;
/// See [`ROWS_MIN`].
const ROWS_MAX: i64 = 1_000_000;
/// Values of an integer key for each row up to which borders are reckoned: a chunk has then at most so many times the
/// rows that it is meant to have.
const GAP_MAX: f64 = 4.0;
/// Types of integers, quoted as [`walk`](super::walk) has them.
const INTEGERS: [&str; 3] = ["\"int2\"", "\"int4\"", "\"int8\""];
/// Parts that a chunk's sums are taken of, so that a difference is narrowed down before anything is read again: a part of
/// a full-sized chunk has some thousand rows.
const PARTS: i32 = 256;

/// A chunk: a range of keys in parts that lie one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Number within the table, from 0.
    pub number: i32,
    /// The parts; never empty. Only the first can be open below and only the last above.
    pub parts: Vec<KeyRange>,
}

impl Chunk {
    /// From the first part's lower border to the last one's upper one.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        KeyRange {
            lo: self.parts.first().and_then(|part| part.lo.clone()),
            hi: self.parts.last().and_then(|part| part.hi.clone()),
        }
    }
}

/// Where a table's walk stands.
#[derive(Debug)]
pub struct Chunks {
    /// Exclusive lower border of what is left; `None` once nothing is left.
    left: Option<KeyRange>,
    number: i32,
    rows: i64,
    /// The greatest key of the authority at the beginning, where the key is one integer.
    last: Option<i64>,
    /// Values of the key for each row, as the last chunk had them.
    gap: Option<f64>,
}

impl Chunks {
    /// Begins behind an unbroken row of settled chunks ([`prefix`]); `number` is one that no chunk has yet.
    #[must_use]
    pub fn after(settled: &[runs::Chunk], number: i32) -> Self {
        let left = match settled.last() {
            None => Some(KeyRange::default()),
            Some(last) => last.hi.clone().map(|hi| KeyRange { lo: Some(hi), hi: None }),
        };
        Self { left, number, rows: ROWS_FIRST, last: None, gap: None }
    }

    /// Asks for what reckoning borders takes, where the key is one integer.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn prepare(
        &mut self,
        authority: &mut Reader,
        form: &TableForm,
        types: &[String],
    ) -> Result<(), ReadError> {
        if let [only] = types
            && INTEGERS.contains(&only.as_str())
        {
            self.last = authority.last_key(form).await?.and_then(|key| key.parse().ok());
        }
        Ok(())
    }

    /// The next chunk, with its borders from the authority. `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn next(
        &mut self,
        authority: &mut Reader,
        form: &TableForm,
        types: &[String],
    ) -> Result<Option<Chunk>, ReadError> {
        let Some(left) = self.left.take() else { return Ok(None) };
        if let Some(borders) = self.reckoned(&left) {
            let number = self.number;
            self.number += 1;
            let parts = parts(left.lo, borders, None);
            let lo = parts.last().and_then(|part| part.hi.clone());
            self.left = Some(KeyRange { lo, hi: left.hi });
            return Ok(Some(Chunk { number, parts }));
        }
        let step = (self.rows / i64::from(PARTS)).max(1);
        let borders = match authority.borders(form, &left, types, (step, PARTS)).await {
            Ok(borders) => borders,
            Err(error) => {
                self.left = Some(left);
                return Err(error);
            }
        };
        let number = self.number;
        self.number += 1;
        let ended = borders.len() < usize::try_from(PARTS).unwrap_or(usize::MAX);
        let parts = parts(left.lo, borders, if ended { Some(left.hi.clone()) } else { None });
        if !ended {
            let lo = parts.last().and_then(|part| part.hi.clone());
            self.left = Some(KeyRange { lo, hi: left.hi });
        }
        Ok(Some(Chunk { number, parts }))
    }

    /// Borders behind the lower one of what is left, without a look at the index. `None` where that would not be bounded,
    /// or where the end is near.
    fn reckoned(&self, left: &KeyRange) -> Option<Vec<Vec<String>>> {
        let (gap, last) = (self.gap.filter(|gap| *gap <= GAP_MAX)?, self.last?);
        let lo: i64 = match left.lo.as_deref()? {
            [only] => only.parse().ok()?,
            _ => return None,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "a width of some millions, and `as` saturates"
        )]
        let step = (self.rows as f64 * gap.max(1.0) / f64::from(PARTS)) as i64;
        let step = step.max(1);
        let end = step.checked_mul(i64::from(PARTS)).and_then(|width| lo.checked_add(width))?;
        if end >= last {
            return None;
        }
        Some((1..=i64::from(PARTS)).map(|number| vec![(lo + step * number).to_string()]).collect())
    }

    /// A chunk with so many rows of the authority took this long on the slower side.
    pub fn took(&mut self, time: Duration, chunk: &Chunk, rows: u64) {
        self.rows = resized(self.rows, time);
        self.gap = gap(&chunk.range(), rows);
    }

    /// A chunk took longer than any may: the next ones are much smaller.
    pub fn timed_out(&mut self) {
        self.rows = (self.rows / 8).max(ROWS_MIN);
    }
}

/// Values of a single integer key for each row of a closed range.
fn gap(range: &KeyRange, rows: u64) -> Option<f64> {
    let number = |border: &Option<Vec<String>>| -> Option<i64> {
        match border.as_deref()? {
            [only] => only.parse().ok(),
            _ => None,
        }
    };
    let width = number(&range.hi)?.checked_sub(number(&range.lo)?)?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let gap = width as f64 / rows.max(1) as f64;
    Some(gap)
}

/// Ranges between borders; with `end`, one more up to there.
fn parts(
    lo: Option<Vec<String>>,
    borders: Vec<Vec<String>>,
    end: Option<Option<Vec<String>>>,
) -> Vec<KeyRange> {
    let mut parts = Vec::with_capacity(borders.len() + 1);
    let mut lo = lo;
    for hi in borders {
        parts.push(KeyRange { lo: lo.replace(hi.clone()), hi: Some(hi) });
    }
    if let Some(hi) = end {
        parts.push(KeyRange { lo, hi });
    }
    parts
}

/// The rows of the next chunk after one of `rows` that took `time`: at most four times as many.
fn resized(rows: i64, time: Duration) -> i64 {
    let time_us = i64::try_from(time.as_micros()).unwrap_or(i64::MAX).max(1);
    let wanted_us = i64::try_from(CHUNK_TIME.as_micros()).unwrap_or(i64::MAX);
    let scaled = rows.saturating_mul(wanted_us) / time_us;
    scaled.clamp(rows / 4, rows.saturating_mul(4)).clamp(ROWS_MIN, ROWS_MAX)
}

/// The settled chunks that an unbroken row from the beginning consists of.
#[must_use]
pub fn prefix(settled: Vec<runs::Chunk>) -> Vec<runs::Chunk> {
    let mut left = settled;
    let mut row: Vec<runs::Chunk> = Vec::new();
    loop {
        let at = match row.last() {
            None => None,
            Some(last) if last.hi.is_none() => return row,
            Some(last) => last.hi.clone(),
        };
        let Some(place) = left.iter().position(|chunk| chunk.lo == at) else { return row };
        row.push(left.swap_remove(place));
    }
}

/// The settled chunks that a walk goes on behind: an unbroken row from the beginning ([`prefix`]). A walk by buckets takes a
/// table in one piece, so that it can use that row only when it reaches the end; a resumed run may walk otherwise than
/// the one that was cut off, for instance because the table was analyzed meanwhile.
#[must_use]
pub fn behind(walk: &Walk, settled: Vec<runs::Chunk>) -> Vec<runs::Chunk> {
    let row = prefix(settled);
    let whole = row.last().is_some_and(|last| last.hi.is_none());
    match walk {
        Walk::Buckets(_) if !whole => Vec::new(),
        Walk::Ranges(_) | Walk::Buckets(_) => row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn key(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    fn settled(number: i32, lo: Option<&str>, hi: Option<&str>) -> runs::Chunk {
        runs::Chunk {
            source_table: "t".to_owned(),
            number,
            lo: lo.map(key),
            hi: hi.map(key),
            lsn: Lsn::ZERO,
            rows_authority: 1,
            rows_copy: 1,
            findings: "[]".to_owned(),
        }
    }

    #[test]
    fn parts_cover_everything_between_the_borders_once() {
        let borders = vec![key("1"), key("2")];
        let range = |lo: Option<&str>, hi: Option<&str>| KeyRange { lo: lo.map(key), hi: hi.map(key) };
        let first = parts(None, borders.clone(), None);
        assert_eq!(first, [range(None, Some("1")), range(Some("1"), Some("2"))]);
        let last = parts(Some(key("0")), borders, Some(None));
        assert_eq!(last, [range(Some("0"), Some("1")), range(Some("1"), Some("2")), range(Some("2"), None)]);
        assert_eq!(parts(None, Vec::new(), Some(None)), [range(None, None)], "an empty table has one part");
    }

    #[test]
    fn chunks_grow_and_shrink_towards_the_time_they_may_take() {
        assert_eq!(resized(10_000, Duration::from_millis(1)), 40_000, "at most four times");
        assert_eq!(resized(10_000, Duration::from_millis(400)), 5_000);
        assert_eq!(resized(10_000, Duration::from_secs(60)), 2_500, "at least a quarter");
        assert_eq!(resized(1_000, Duration::from_secs(60)), ROWS_MIN);
        assert_eq!(resized(ROWS_MAX, Duration::ZERO), ROWS_MAX);
    }

    #[test]
    fn borders_are_reckoned_only_where_a_range_is_bounded_and_the_end_is_far() {
        let at = |lo: &str| KeyRange { lo: Some(key(lo)), hi: None };
        let dense =
            |gap, last| Chunks { left: None, number: 0, rows: 25_600, last: Some(last), gap: Some(gap) };
        let borders = dense(1.0, 1_000_000).reckoned(&at("-100")).unwrap();
        assert_eq!((borders.len(), &borders[0], &borders[255]), (256, &key("0"), &key("25500")));
        assert_eq!(dense(2.0, 1_000_000).reckoned(&at("0")).unwrap()[255], key("51200"));
        assert_eq!(dense(4.1, 1_000_000).reckoned(&at("0")), None, "too many gaps");
        assert_eq!(dense(1.0, 25_600).reckoned(&at("0")), None, "the end is near");
        assert_eq!(dense(1.0, i64::MAX).reckoned(&at("9223372036854775800")), None, "no overflow");
        assert_eq!(dense(1.0, 1_000_000).reckoned(&KeyRange::default()), None, "nothing is known yet");
        let closed = KeyRange { lo: Some(key("10")), hi: Some(key("30")) };
        assert_eq!((gap(&closed, 10), gap(&closed, 0)), (Some(2.0), Some(20.0)));
        assert_eq!(gap(&at("1"), 10), None);
    }

    #[test]
    fn a_resumed_walk_goes_on_where_the_unbroken_row_ends() {
        let all = [settled(0, None, Some("5")), settled(2, Some("9"), None)];
        let whole = [settled(1, Some("5"), None), settled(0, None, Some("5"))];
        let numbers = |chunks: Vec<runs::Chunk>| chunks.iter().map(|chunk| chunk.number).collect::<Vec<_>>();
        let (row, whole) = (prefix(all.to_vec()), prefix(whole.to_vec()));
        assert_eq!(numbers(row.clone()), [0], "what lies between is missing");
        assert_eq!(numbers(whole.clone()), [0, 1]);
        let left = |settled: &[runs::Chunk]| Chunks::after(settled, 9).left;
        assert_eq!(left(&row), Some(KeyRange { lo: Some(key("5")), hi: None }));
        assert_eq!(left(&whole), None);
        assert_eq!(left(&[]), Some(KeyRange::default()));
    }

    #[test]
    fn a_walk_by_buckets_begins_anew_behind_ranges_that_do_not_reach_the_end() {
        let part = vec![settled(0, None, Some("5")), settled(2, Some("9"), None)];
        let whole = vec![settled(0, None, Some("5")), settled(1, Some("5"), None)];
        let (ranges, buckets) = (Walk::Ranges(vec!["int4".to_owned()]), Walk::Buckets(64));
        assert_eq!(behind(&ranges, part.clone()).len(), 1);
        assert_eq!(behind(&buckets, part), []);
        assert_eq!(behind(&buckets, whole.clone()), whole);
        assert_eq!(behind(&buckets, Vec::new()), []);
    }
}
