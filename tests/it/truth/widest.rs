//! A table of as many columns as there may be.

use strangler::reconcile::finding::FindingKind::Differs;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_in_a_row_of_1_600_columns_is_proven_and_its_column_named() {
    let columns: Vec<String> = (1..1_600).map(|number| format!("c{number} mood DEFAULT 'fine'")).collect();
    let setup = format!(
        "CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE TABLE wide (id int PRIMARY KEY, {}); \
         INSERT INTO wide SELECT generate_series(1, 20)",
        columns.join(", ")
    );
    let (split, monolith, service) = Split::launch("{ wide: {} }", &setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "UPDATE wide SET c1599 = 'sad' WHERE id = 7").await;
    let run = Run::of(&split, &[]);
    let expected = ("wide".to_owned(), Differs, vec!["7".to_owned()], vec!["c1599".to_owned()]);
    assert_eq!((run.told(), run.reasons().as_str()), (vec![expected], ""));
}
