//! A table has one gate: a second slice that takes it, of another plan or of this one under another name, is told whose it
//! is by every verb, and the gate stays.

use strangler::cluster::Cluster as _;
use tokio_postgres::Client;

use crate::support::binary::{Ended, flat};
use crate::support::cluster::{connect, create_database};
use crate::support::split::Split;

const SECOND: &str = "version: 1\nplan: other\nmonolith: { url: \"${MONOLITH}\" }
services: { second: { url: \"${SECOND}\" } }
slices: { two: { service: second, tables: { t: {} } } }\n";

/// Slice `one` of plan `split` is mirrored, and so is `two` of plan `other`, which takes the same table: an earlier version
/// let it. The plan in force is that of `one`.
async fn twice() -> (Split, Client) {
    let (mut split, monolith, service) =
        Split::launch("{ t: {} }", "CREATE TABLE t (id int PRIMARY KEY)").await;
    create_database(&split.pair.service, "second").await;
    let url = split.pair.service.url("second");
    split.lead("SECOND", &url);
    mirrored(&split, (&monolith, &service)).await;
    hide(&monolith, "one").await;
    split.write_plan(SECOND);
    mirrored(&split, (&monolith, &connect(&url).await)).await;
    show(&monolith, "one").await;
    split.write_plan(&Split::plan("{ t: {} }"));
    (split, monolith)
}

async fn mirrored(split: &Split, (monolith, service): (&Client, &Client)) {
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(monolith, service).await;
    mirror.stop();
}

/// Nobody can tell that the slice has its table.
async fn hide(monolith: &Client, slice: &str) {
    let sql = "UPDATE strangler.slice SET publication = 'hidden ' || publication WHERE slice = $1";
    assert_eq!(monolith.execute(sql, &[&slice]).await.unwrap(), 1);
}

async fn show(monolith: &Client, slice: &str) {
    let sql = "UPDATE strangler.slice SET publication = replace(publication, 'hidden ', '') WHERE slice = $1";
    assert_eq!(monolith.execute(sql, &[&slice]).await.unwrap(), 1);
}

/// The gates that the table asks.
async fn gates(monolith: &Client) -> Vec<String> {
    let sql =
        "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal";
    monolith.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn assert_told(ended: &Ended, exit: i32, words: &[&str]) {
    assert_eq!(ended.exit, Some(exit), "{}", ended.page());
    // Prose is wrapped.
    let said = flat(&ended.page());
    for word in words {
        assert!(said.contains(word), "{word} is not in {}", ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_table_of_another_slice_is_told_by_every_verb_and_nobody_takes_its_gate() {
    let (split, monolith) = twice().await;
    let told = [
        "table-claimed",
        "it belongs to slice two of plan other, which is provisioned with it",
        "start-anew.md",
    ];
    assert_told(&split.run("arm", &[]), 3, &told);
    hide(&monolith, "two").await;
    assert_told(&split.run("arm", &[]), 0, &[]);
    show(&monolith, "two").await;
    assert_eq!(gates(&monolith).await, ["strangler.gate_one"]);
    assert_told(&split.run("arm", &[]), 0, &[]);
    assert_told(&split.run("check", &[]), 0, &[]);

    split.write_plan(SECOND);
    let told = ["table-claimed", "it belongs to slice one of plan split, whose gate hangs on it"];
    assert_told(&split.run("check", &[]), 1, &told);
    assert_told(&split.run("provision", &[]), 3, &told);
    assert_told(&split.run("arm", &[]), 3, &told);
    assert_told(&split.run("flip", &[]), 3, &["table-claimed", "slice one", "strangler check plan.yaml"]);
    assert_told(&split.run("flip", &["--rehearse", "1"]), 3, &["table-claimed", "slice one"]);
    assert_told(&split.run("status", &[]), 1, &[told[1], "next strangler check plan.yaml"]);
    assert_told(&split.run("disarm", &[]), 0, &[]);
    assert_eq!(gates(&monolith).await, ["strangler.gate_one"]);
    let guarded = split.run("status", &["--format", "json"]);
    assert!(!guarded.stdout.contains("strangler arm"), "{}", guarded.page());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_was_renamed_or_is_of_another_plan_is_refused_before_anything_is_made() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    let (mut split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    create_database(&split.pair.service, "second").await;
    let url = split.pair.service.url("second");
    split.lead("SECOND", &url);
    mirrored(&split, (&monolith, &service)).await;
    let renamed = Split::plan("{ t: {} }").replace("one:", "uno:");
    for (plan, words) in [
        (SECOND, ["table-claimed", "slice one of plan split", "take it out of slice two"]),
        (
            renamed.as_str(),
            ["slice-renamed", "it takes tables of slice one", "give slice uno its old name in the plan: one"],
        ),
    ] {
        split.write_plan(plan);
        for (verb, exit) in [("check", 1), ("provision", 3), ("status", 1)] {
            let ended = split.run(verb, &[]);
            assert_told(&ended, exit, if verb == "status" { &words[1..2] } else { &words });
            // It is one problem, and nobody advises another table, or calls the slice's own table somebody else's.
            for other in ["table-claimed", "table-taken", "target-not-empty", "`to:`"] {
                assert!(
                    plan != renamed || !ended.page().contains(other),
                    "{verb}: {other}: {}",
                    ended.page()
                );
            }
            // A slice of this plan that it lacks now is shown with the way out, one of another plan is not its affair.
            let orphan = ended.stdout.contains("one  not in the plan");
            assert_eq!(orphan, verb == "status" && plan == renamed, "{}", ended.page());
            let way_out = "next       name slice one in the plan as it was, then strangler status plan.yaml --slice one; or take";
            assert!(!orphan || ended.stdout.contains(way_out), "{}", ended.page());
        }
    }
    let slices = monolith.query("SELECT slice FROM strangler.slice", &[]).await.unwrap();
    assert_eq!(slices.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["one"]);
    split.write_plan(&Split::plan("{ t: {} }"));
    split.provision();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn slices_that_take_different_rows_of_a_table_are_mirrored_and_not_armed() {
    let (mut split, monolith, service) = Split::launch(
        "{ t: { where: { kind: in } } }",
        "CREATE TABLE t (id int, kind text, PRIMARY KEY (id, kind)); INSERT INTO t VALUES (1, 'in'), (2, 'out')",
    )
    .await;
    create_database(&split.pair.service, "second").await;
    let url = split.pair.service.url("second");
    split.lead("SECOND", &url);
    split.write_plan(
        "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" }, second: { url: \"${SECOND}\" } }
policy: { flip_together: [[one, two]] }
slices:
  one: { service: service, tables: { t: { where: { kind: in } } } }
  two: { service: second, tables: { t: { where: { kind: out } } } }\n",
    );
    let second = connect(&url).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    mirror.caught_up(&monolith, &second).await;
    mirror.stop();
    assert_told(&split.run("check", &[]), 0, &[]);
    for only in [&[] as &[&str], &["--slice", "one"], &["--slice", "two"]] {
        let told = ["table-shared", "and others go to", "a table has one gate"];
        assert_told(&split.run("arm", only), 3, &told);
    }
    assert_eq!(gates(&monolith).await, [""; 0]);
    for client in [&service, &second] {
        assert_eq!(client.query("SELECT FROM t", &[]).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_table_that_another_plans_slice_has_is_not_adopted() {
    let setup =
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1)";
    let (split, monolith, service) = Split::launch("{ t: {} }", setup).await;
    mirrored(&split, (&monolith, &service)).await;
    split.write_plan(
        "version: 1\nplan: other\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt } }
slices: { two: { service: service, tables: { u: { to: t } } } }\n",
    );
    let words = ["(table-claimed)", "service service, table t", "slice one of plan split", "start-anew.md"];
    for ddl in ["adopt", "create"] {
        let check = split.run("check", &[]);
        assert_told(&check, 1, &words);
        assert_told(&check, 1, &["(target-not-empty)", "it belongs to slice one of plan split"]);
        let provision = split.run("provision", &[]);
        assert_told(&provision, 3, &words);
        // What would empty or take over the other slice's copy is advised by nobody.
        for advice in ["TRUNCATE", "ddl: adopt", "drop or rename"] {
            let said = format!("{}{}", check.page(), provision.page());
            assert!(!said.contains(advice), "{ddl}: {advice}: {said}");
        }
        split.write_plan(&split.plan_text().replace("ddl: adopt", "ddl: create"));
    }
    let rows: i64 = service.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(rows, 1);
    split.write_plan(&Split::plan("{ t: {} }"));
    let again = split.run("provision", &[]);
    assert_told(&again, 0, &["nothing was missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_into_a_table_of_another_plan_stays_cut_until_the_last_of_both_is_disarmed() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY); \
                 CREATE TABLE c (id int PRIMARY KEY, t int CONSTRAINT fk REFERENCES t)";
    let (mut split, monolith, service) = Split::launch("{ c: {} }", setup).await;
    create_database(&split.pair.service, "second").await;
    let url = split.pair.service.url("second");
    split.lead("SECOND", &url);
    let first = split.plan_text();
    mirrored(&split, (&monolith, &service)).await;
    assert_told(&split.run("arm", &[]), 0, &[]);
    split.write_plan(SECOND);
    mirrored(&split, (&monolith, &connect(&url).await)).await;
    assert_told(&split.run("arm", &[]), 0, &[]);
    let keys = async || -> i64 {
        let sql = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'c'::regclass AND contype = 'f' AND convalidated";
        monolith.query_one(sql, &[]).await.unwrap().get(0)
    };
    split.write_plan(&first);
    let told = ["leave cut, for another slice that is armed, foreign key"];
    assert_told(&split.run("disarm", &[]), 0, &told);
    assert_eq!(keys().await, 0, "the other end may be closed");
    split.write_plan(SECOND);
    assert_told(&split.run("disarm", &[]), 0, &["bring back foreign key"]);
    assert_eq!(keys().await, 1);
}
