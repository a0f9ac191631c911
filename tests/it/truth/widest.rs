//! A table of as many columns as there may be.

use strangler::reconcile::finding::FindingKind::Differs;

use super::found::Run;
use super::stage::corrupt;
use crate::support::soak;
use crate::support::split::Split;

/// Wide enough that the limits of a proof follow the width; statements about the widest table there may be take longer.
const USUAL: usize = 600;
const WIDEST: usize = 1_600;

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_in_a_row_of_very_many_columns_is_proven_and_its_column_named() {
    let width = if soak() { WIDEST } else { USUAL };
    let last = format!("c{}", width - 1);
    let columns: Vec<String> = (1..width).map(|number| format!("c{number} mood DEFAULT 'fine'")).collect();
    let setup = format!(
        "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TABLE wide (id int PRIMARY KEY, {}); \
         INSERT INTO wide SELECT generate_series(1, 20)",
        columns.join(", ")
    );
    let (split, monolith, service) = Split::launch("{ wide: {} }", &setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, &format!("UPDATE wide SET {last} = 'sad' WHERE id = 7")).await;
    let run = Run::of(&split, &[]);
    let expected = ("wide".to_owned(), Differs, vec!["7".to_owned()], vec![last]);
    assert_eq!((run.told(), run.reasons().as_str()), (vec![expected], ""));
}

/// Halves of a `bigint` fold into one hash, which tells 1 from 2^32 in tables of any width.
#[tokio::test(flavor = "multi_thread")]
async fn the_upper_half_of_a_bigint_is_seen_in_a_table_of_more_columns_than_one_record_holds() {
    let columns: Vec<String> = (1..850).map(|number| format!("c{number} int")).collect();
    let setup = format!(
        "CREATE TABLE wide (id int PRIMARY KEY, big bigint, {}, last bigint); \
         INSERT INTO wide (id, big, last) SELECT i, 1, 1 FROM generate_series(1, 20) i",
        columns.join(", ")
    );
    let (split, monolith, service) = Split::launch("{ wide: {} }", &setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let folded =
        "UPDATE wide SET big = 4294967296 WHERE id = 7; UPDATE wide SET last = 4294967296 WHERE id = 8";
    corrupt(&service, folded).await;
    let run = Run::of(&split, &[]);
    let expected =
        |id: &str, column: &str| ("wide".to_owned(), Differs, vec![id.to_owned()], vec![column.to_owned()]);
    assert_eq!((run.told(), run.reasons().as_str()), (vec![expected("7", "big"), expected("8", "last")], ""));
}
