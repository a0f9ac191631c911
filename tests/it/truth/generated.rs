//! Generated columns: no stream carries them, so only a comparison sees that the two sides computed another value.

use strangler::cluster::{Binaries, Options};
use strangler::reconcile::finding::FindingKind::{Differs, Missing};
use tokio_postgres::Client;

use super::found::{Run, Told};
use super::stage::corrupt;
use crate::support::cluster::{Pair, launch_with, options};
use crate::support::say;
use crate::support::split::{Mirror, Split};

const TOTAL: &str =
    "CREATE FUNCTION total(n int) RETURNS numeric LANGUAGE sql IMMUTABLE AS 'SELECT n * 1.10'";
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, note text,
        total numeric GENERATED ALWAYS AS (public.total(n)) STORED, loud text GENERATED ALWAYS AS (upper(note)) STORED);
    INSERT INTO t SELECT i, i, 'note ' || i FROM generate_series(1, 300) i; ANALYZE";

async fn stage() -> (Split, Client, Client, Mirror) {
    let (split, monolith, service) = Split::launch("{ t: {} }", &format!("{TOTAL}; {TABLE}")).await;
    service.batch_execute(TOTAL).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    (split, monolith, service, mirror)
}

fn differs(id: i32, columns: &[&str]) -> Told {
    let columns = columns.iter().map(|name| (*name).to_owned()).collect();
    ("t".to_owned(), Differs, vec![id.to_string()], columns)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_a_function_of_the_service_computes_otherwise_is_found_and_a_repair_says_that_it_can_not_write_it()
 {
    let (split, monolith, service, mirror) = stage().await;
    for arguments in [&[][..], &["--strict"], &["--sample", "50%"]] {
        Run::of(&split, arguments).assert_clean();
    }
    let other = TOTAL.replace("CREATE", "CREATE OR REPLACE").replace("1.10", "1.19");
    service.batch_execute(&other).await.unwrap();
    monolith.batch_execute("UPDATE t SET n = n + 1 WHERE id IN (3, 200)").await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "UPDATE t SET note = 'wrong' WHERE id = 7; DELETE FROM t WHERE id = 8").await;
    let found = [
        ("t".to_owned(), Missing, vec!["8".to_owned()], vec![]),
        differs(200, &["total"]),
        differs(3, &["total"]),
        differs(7, &["loud", "note"]),
    ];
    for arguments in [&[][..], &["--strict"], &["--changed-since", "0/1"]] {
        let run = Run::of(&split, arguments);
        assert_eq!((run.told(), run.reasons().as_str()), (found.to_vec(), ""), "{}", run.ended.page());
    }
    for format in ["text", "json", "junit", "html", "markdown"] {
        let told = split.run("reconcile", &["--format", format]);
        let words = "total is generated: the service computes it by itself";
        assert!(told.exit == Some(1) && told.stdout.contains(words), "{format}: {}", told.page());
    }
    let preview = split.run("reconcile", &["--repair", "--dry-run"]);
    assert!(
        preview.stderr.contains("total is generated, so the mirror does not write it"),
        "{}",
        preview.page()
    );
    let refused = split.run("reconcile", &["--repair"]);
    let words = "total still differs: the service computes it by itself, so no repair can write it. Next: make its expression";
    assert!(refused.exit == Some(1) && refused.stderr.contains(words), "{}", refused.page());
    assert!(!refused.stderr.contains("loud still differs"), "{}", refused.page());
    // Every row that was written since is computed as the service's function has it, and no other column is wrong.
    let left = Run::of(&split, &[]);
    let columns: Vec<_> =
        left.told().into_iter().map(|(_, _, key, columns)| (key.concat(), columns.concat())).collect();
    assert_eq!(columns, ["200", "3", "7", "8"].map(|id| (id.to_owned(), "total".to_owned())));
    service.batch_execute(&other.replace("1.19", "1.10")).await.unwrap();
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(0), "{}", repaired.page());
    Run::of(&split, &["--strict"]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_service_does_not_generate_any_more_is_found() {
    let (split, monolith, service, mirror) = stage().await;
    service.batch_execute("ALTER TABLE t ALTER total DROP EXPRESSION").await.unwrap();
    monolith
        .batch_execute("UPDATE t SET n = n + 1 WHERE id = 3; INSERT INTO t VALUES (301, 1, 'new')")
        .await
        .unwrap();
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &[]);
    assert_eq!(run.told(), [differs(3, &["total"]), differs(301, &["total"])], "{}", run.ended.page());
    let words = "total is generated, but not on the service: nothing fills it there";
    assert!(run.ended.stdout.contains(words), "{}", run.ended.page());
    let refused = split.run("reconcile", &["--repair"]);
    let words = "total still differs: it is no generated column on the service, so nothing fills it there";
    assert!(refused.exit == Some(1) && refused.stderr.contains(words), "{}", refused.page());
}

const ADOPTING: &str = "version: 1
plan: split
monolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", ddl: adopt } }
slices: { one: { service: service, tables: { t: {} } } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_service_lacks_or_that_can_not_be_compared_is_told_and_all_others_are_compared() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED,
            half numeric GENERATED ALWAYS AS (n / 2.0) STORED);
        INSERT INTO t SELECT i, i FROM generate_series(1, 300) i; ANALYZE";
    let (split, monolith, service) = Split::with_plan(ADOPTING, setup).await;
    let there = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)";
    service.batch_execute(there).await.unwrap();
    let check = split.run("check", &[]);
    assert!(check.exit == Some(0) && check.stdout.contains("(generated-absent"), "{}", check.page());
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let words = "the generated column half was not compared: the column is not on both sides";
    Run::of(&split, &[]).assert_incomplete(&[words]);
    for format in ["text", "json", "junit", "html", "markdown"] {
        let told = split.run("reconcile", &["--format", format]);
        assert!(told.exit == Some(5) && told.stdout.contains(words), "{format}: {}", told.page());
    }
    corrupt(&service, "UPDATE t SET n = 0 WHERE id = 5").await;
    let run = Run::of(&split, &[]);
    assert_eq!(run.told(), [differs(5, &["n", "twice"])], "{}", run.ended.page());
    assert!(run.reasons().contains(words), "{}", run.ended.page());
    let repaired = split.run("reconcile", &["--repair"]);
    assert_eq!(repaired.exit, Some(1), "what was not compared stays so: {}", repaired.page());
    split.change_plan("t: {}", "t: { columns: { half: { drop: true } } }");
    Run::of(&split, &[]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_is_generated_from_a_classified_column_is_shown_as_a_digest() {
    let plan = "version: 1
plan: split
monolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\", accepts: [pii] } }
slices: { one: { service: service, tables: { t: {} } } }
policy: { classify: [{ table: t, column: note, class: pii }] }
";
    let (split, monolith, service) = Split::with_plan(plan, &format!("{TOTAL}; {TABLE}")).await;
    service.batch_execute(TOTAL).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "UPDATE t SET note = 'hush' WHERE id = 7").await;
    let run = Run::of(&split, &[]);
    assert_eq!(run.told(), [differs(7, &["loud", "note"])], "{}", run.ended.page());
    for format in ["text", "json", "junit", "html", "markdown"] {
        let told = split.run("reconcile", &["--format", format, "--log-level", "debug"]).page();
        assert!(!told.contains("HUSH") && !told.contains("NOTE 7"), "{format}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_columns_are_compared_by_what_they_are_read_as() {
    let installed = Binaries::find_all().unwrap();
    let Some(new) = installed.iter().find(|binaries| binaries.version.major >= 18) else {
        say("no PostgreSQL 18 is installed, and no other has virtual columns");
        return;
    };
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL);
        INSERT INTO t SELECT i, i FROM generate_series(1, 300) i; ANALYZE";
    let stored = Binaries::find().unwrap();
    for (target, other, wrong) in [
        (new, "ALTER TABLE t ALTER twice SET EXPRESSION AS (n * CASE id WHEN 9 THEN 3 ELSE 2 END)", "SELECT"),
        (&stored, "ALTER TABLE t ALTER twice DROP EXPRESSION", "UPDATE t SET twice = 27 WHERE id = 9"),
    ] {
        say(&format!("virtual columns of {} against {}", new.version, target.version));
        let server =
            |binaries: &Binaries| launch_with(Options { binaries: Some(binaries.clone()), ..options() });
        let pair = Pair::of(server(new), server(target), "").await;
        let (split, monolith, service) = Split::between(pair, &Split::plan("{ t: {} }"), setup).await;
        split.provision();
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        for arguments in [&[][..], &["--strict"]] {
            Run::of(&split, arguments).assert_clean();
        }
        service.batch_execute(other).await.unwrap();
        corrupt(&service, wrong).await;
        let run = Run::of(&split, &[]);
        assert_eq!(run.told(), [differs(9, &["twice"])], "{}", run.ended.page());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_column_that_can_not_be_computed_for_a_row_is_told_as_what_keeps_its_table_from_being_compared()
 {
    let installed = Binaries::find_all().unwrap();
    let Some(new) = installed.iter().find(|binaries| binaries.version.major >= 18) else {
        say("no PostgreSQL 18 is installed, and no other has virtual columns");
        return;
    };
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, part int GENERATED ALWAYS AS (100 / n) VIRTUAL);
        INSERT INTO t SELECT i, i % 50 FROM generate_series(1, 300) i; ANALYZE";
    let server = || launch_with(Options { binaries: Some(new.clone()), ..options() });
    let pair = Pair::of(server(), server(), "").await;
    let (split, monolith, service) = Split::between(pair, &Split::plan("{ t: {} }"), setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &[]);
    run.assert_incomplete(&["a value was refused"]);
    assert!(run.reasons().contains("generated columns of it: part"), "{}", run.ended.page());
    split.change_plan("t: {}", "t: { columns: { part: { drop: true } } }");
    Run::of(&split, &[]).assert_clean();
}
