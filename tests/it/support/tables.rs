//! Reads whole tables, in a way that shares nothing with the code under test, and compares them.

use futures_util::TryStreamExt;
use tokio_postgres::Client;

/// The rows of a query in the text form of COPY, sorted by their bytes, so that no collation matters.
pub async fn dump(client: &Client, query: &str) -> Vec<String> {
    let copy = format!("COPY ({query}) TO STDOUT");
    let stream = client.copy_out(copy.as_str()).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let chunks: Vec<_> = stream.try_collect().await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let bytes = chunks.concat();
    // COPY writes a line break inside a value as \n, so a line is a row.
    let mut rows: Vec<String> = String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

/// One side of a comparison: where, and what is read there. For a table with the same columns on both sides that is
/// `TABLE name`; where columns are renamed or left out, a SELECT with the columns in the same order.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub client: &'a Client,
    pub query: &'a str,
}

/// Checks that both sides hold the same rows, each as often, and returns how many.
///
/// # Panics
/// With the counts and the first rows that only one side has.
pub async fn assert_same(left: Side<'_>, right: Side<'_>) -> usize {
    let left_rows = dump(left.client, left.query).await;
    let right_rows = dump(right.client, right.query).await;
    if let Some(difference) = difference(&left_rows, &right_rows) {
        panic!("{} and {} differ: {difference}", left.query, right.query);
    }
    left_rows.len()
}

/// What tells two sorted lists of rows apart, in words; `None` when nothing does.
pub fn difference(left: &[String], right: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let (only_left, only_right) = (missing_from(right, left), missing_from(left, right));
    if only_left.is_empty() && only_right.is_empty() {
        return None;
    }
    let show =
        |rows: &[&String]| rows.iter().take(SHOWN).map(|row| format!("\n    {row:?}")).collect::<String>();
    Some(format!(
        "{} rows left, {} rows right\n  {} only left:{}\n  {} only right:{}",
        left.len(),
        right.len(),
        only_left.len(),
        show(&only_left),
        only_right.len(),
        show(&only_right)
    ))
}

/// The rows of `from` that `sorted` does not have as often. Both are sorted.
fn missing_from<'a>(sorted: &[String], from: &'a [String]) -> Vec<&'a String> {
    let mut others = sorted.iter().peekable();
    let mut missing = Vec::new();
    for row in from {
        while others.next_if(|other| *other < row).is_some() {}
        if others.next_if(|other| *other == row).is_none() {
            missing.push(row);
        }
    }
    missing
}

#[test]
fn a_comparison_sees_missing_changed_and_repeated_rows() {
    let rows = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(difference(&rows("a b c"), &rows("a b c")), None);
    assert_eq!(difference(&[], &[]), None);
    for (left, right, words) in [
        ("a b c", "a c", "1 only left:\n    \"b\""),
        ("a c", "a b c", "1 only right:\n    \"b\""),
        ("a a b", "a b", "1 only left:\n    \"a\""),
        ("a b", "a b b", "1 only right:\n    \"b\""),
        ("", "x", "0 rows left, 1 rows right"),
        ("a b", "a z", "1 only right:\n    \"z\""),
    ] {
        let found = difference(&rows(left), &rows(right)).unwrap();
        assert!(found.contains(words), "{left} | {right}: {found}");
    }
}
