//! Keys of a composite type: a value with a NULL in one of its fields is a value, and `IS NOT NULL` says that it is none.

use strangler::reconcile::finding::FindingKind::{Differs, Missing};

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};

const SETUP: &str = "CREATE TYPE place AS (a int, b int); CREATE DOMAIN spot AS place;
    CREATE TABLE places (k place PRIMARY KEY, v text); CREATE TABLE spots (k spot PRIMARY KEY, v text);
    INSERT INTO places SELECT ROW(i, CASE WHEN i % 3 > 0 THEN i END)::place, 'v' FROM generate_series(1, 300) i;
    INSERT INTO places VALUES (ROW(NULL, NULL)::place, 'v'); INSERT INTO spots SELECT k, v FROM places; ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_composite_key_has_a_null_field_are_compared_and_repaired_as_any_other() {
    let (split, monolith, service) = Split::launch("{ places: {}, spots: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let clean = Run::of(&split, &["--strict"]);
    clean.assert_clean();
    let rows: Vec<_> =
        clean.document.slices[0].tables.iter().map(|table| (table.rows_authority, table.rows_copy)).collect();
    assert_eq!(rows, [(301, 301); 2], "{}", clean.ended.page());

    let wrong = |id: i32| format!("UPDATE spots SET v = 'wrong' WHERE (k).a = {id}");
    let gone = "DELETE FROM places WHERE (k).a = 6; DELETE FROM places WHERE num_nulls((k).a, (k).b) = 2";
    corrupt(&service, &format!("{}; {}; {gone}", wrong(7), wrong(9))).await;
    let told = |table: &str, kind, key: &str| (table.to_owned(), kind, vec![key.to_owned()]);
    let expected = [
        told("places", Missing, "(,)"),
        told("places", Missing, "(6,)"),
        told("spots", Differs, "(7,7)"),
        told("spots", Differs, "(9,)"),
    ];
    for arguments in [&[][..], &["--strict"], &["--repair"]] {
        let run = Run::of(&split, arguments);
        let mut found: Vec<_> =
            run.told().into_iter().map(|(table, kind, key, _)| (table, kind, key)).collect();
        found.sort_by(|one, other| (&one.0, &one.2).cmp(&(&other.0, &other.2)));
        if arguments != ["--repair"] {
            assert_eq!(found, expected, "{}", run.ended.page());
        }
    }
    Run::of(&split, &["--strict"]).assert_clean();
    monolith.batch_execute("UPDATE spots SET v = 'new' WHERE (k).a IN (10, 11)").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, &format!("{}; {}", wrong(10), wrong(11))).await;
    let repaired = split.run("reconcile", &["--changed-since", "last", "--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    for table in ["places", "spots"] {
        let query = format!("SELECT k::text, v FROM {table} ORDER BY 1");
        let side = |client| Side { client, query: &query };
        assert_same(side(&monolith), side(&service)).await;
    }
    mirror.stop();
}
