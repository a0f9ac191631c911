//! Tables that the service made itself, with types of other names.

use strangler::reconcile::finding::FindingKind;
use strangler::reconcile::finding::FindingKind::{Differs, Extra, Misplaced, Missing};

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;

const PLAN: &str = "version: 1
plan: split
monolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt } }
slices: { one: { service: service, tables: { t: { where: { state: [new, paid] } } } } }
";

const SETUP: &str = "CREATE TYPE state AS ENUM ('new', 'paid', 'void');
    CREATE TABLE t (id int, state state, v text, PRIMARY KEY (id, state));
    INSERT INTO t SELECT g, (ARRAY['new', 'paid', 'void'])[1 + g % 3]::state, 'v' FROM generate_series(1, 3000) g;
    ALTER TABLE t REPLICA IDENTITY FULL; ANALYZE";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_a_key_and_a_filter_of_an_enum_that_the_service_names_otherwise() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    let theirs = "CREATE SCHEMA app; CREATE TYPE app.order_state AS ENUM ('new', 'paid', 'void');
        CREATE TABLE t (id bigint, state app.order_state, v text, PRIMARY KEY (id, state))";
    service.batch_execute(theirs).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for strict in [&["--strict"][..], &[]] {
        Run::of(&split, strict).assert_clean();
    }
    corrupt(
        &service,
        "UPDATE t SET v = 'w' WHERE id = 3; DELETE FROM t WHERE id = 4;
         INSERT INTO t VALUES (5000000000, 'paid', 'v'), (2, 'void', 'v')",
    )
    .await;
    let run = Run::of(&split, &[]);
    let told = |kind: FindingKind, id: &str, state: &str, columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        ("t".to_owned(), kind, vec![id.to_owned(), state.to_owned()], columns)
    };
    let mut expected = vec![
        told(Differs, "3", "new", &["v"]),
        told(Missing, "4", "paid", &[]),
        told(Extra, "5000000000", "paid", &[]),
        told(Misplaced, "2", "void", &[]),
    ];
    expected.sort();
    assert_eq!(run.told(), expected, "{}", run.ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_single_key_is_found_where_it_is_a_larger_integer_in_the_service() {
    let plan = PLAN.replace("{ where: { state: [new, paid] } }", "{}");
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n smallint, v varchar(9));
        INSERT INTO t SELECT g, g % 100, 'v' FROM generate_series(1, 20000) g; ANALYZE";
    let (split, monolith, service) = Split::with_plan(&plan, setup).await;
    service.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint, v text)").await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for strict in [&["--strict"][..], &[]] {
        Run::of(&split, strict).assert_clean();
    }
    // Another value of the same lower half, and rows that no integer of the monolith could be.
    corrupt(
        &service,
        "UPDATE t SET n = n + 4294967296 WHERE id = 3; DELETE FROM t WHERE id = 4;
         INSERT INTO t VALUES (-5000000000, 1, 'v'), (5000000000, 1, 'v')",
    )
    .await;
    let run = Run::of(&split, &[]);
    let told = |kind: FindingKind, id: &str, columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        ("t".to_owned(), kind, vec![id.to_owned()], columns)
    };
    let mut expected = vec![
        told(Differs, "3", &["n"]),
        told(Missing, "4", &[]),
        told(Extra, "-5000000000", &[]),
        told(Extra, "5000000000", &[]),
    ];
    expected.sort();
    assert_eq!(run.told(), expected, "{}", run.ended.page());
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    Run::of(&split, &[]).assert_clean();
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_the_services_own_is_drawn_for_each_mirrored_row() {
    let plan = PLAN.replace("{ where: { state: [new, paid] } }", "{}");
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 300) g; ANALYZE";
    let (split, monolith, service) = Split::with_plan(&plan, setup).await;
    let theirs = "CREATE SCHEMA numbers; CREATE SEQUENCE numbers.arrivals;
        CREATE TABLE t (id int PRIMARY KEY, v text, row_number bigserial, arrival bigint DEFAULT nextval('numbers.arrivals'))";
    service.batch_execute(theirs).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    monolith.batch_execute("INSERT INTO t VALUES (1000, 'behind the copy')").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    let drawn = "SELECT count(DISTINCT row_number), count(DISTINCT arrival) FROM t";
    let row = service.query_one(drawn, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (301, 301));
    Run::of(&split, &[]).assert_clean();
}
