//! Keys whose texts the sides don't tell apart alike: a repair never takes a right row for another one.

use strangler::failpoint::hooks::Mutant;
use strangler::journal::repairs::{RepairOutcome, RepairState};

use super::{answered, live, request};
use crate::support::scenario::{Run, Scenario};

const SCHEMA: &str = "CREATE TABLE names (name text PRIMARY KEY, v int); \
    INSERT INTO names SELECT 'Name ' || n, n FROM generate_series(1, 60) n";

/// Asks for two keys under which the monolith has no row any more, and gives the service's key another meaning of equal once the rows are
/// read. Returns the answers and how many rows the service has.
async fn asked(mutants: &[Mutant]) -> (Vec<RepairOutcome>, i64) {
    let scenario = Scenario::new(SCHEMA, "      names: {}\n").await;
    let run = Run::new(mutants);
    let _running = scenario.start(&run);
    live(&scenario).await;
    scenario.write("UPDATE names SET name = upper(name) WHERE v < 3").await;
    scenario.until_target("SELECT EXISTS (SELECT FROM names WHERE name = 'NAME 2')").await;
    run.hooks.close("repair-read", 0);
    let keys = ["Name 1", "Name 2", "gone"].map(|key| (vec![key.to_owned()], "extra"));
    let ids = request(&scenario.target, "things", "names", &keys).await;
    run.hooks.reached("repair-read").await;
    let working = "SELECT detail = 'repairs rows of names' FROM strangler.mirror_process";
    scenario.until_target(working).await;
    let other = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
        ALTER TABLE names ALTER name TYPE text COLLATE ci";
    scenario.target.batch_execute(other).await.unwrap();
    run.hooks.open("repair-read");
    let answers = answered(&scenario.target, &ids).await;
    let rows = scenario.target.query_one("SELECT count(*) FROM names", &[]).await.unwrap();
    (answers, rows.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_got_another_collation_before_its_rows_were_written_is_refused() {
    let (answers, rows) = asked(&[]).await;
    for answer in &answers {
        let why = answer.detail.as_deref().unwrap_or_default();
        assert!(
            answer.state == RepairState::Refused
                && why.contains("not deterministic")
                && why.contains("ALTER TABLE \"public\".\"names\" ALTER COLUMN \"name\" TYPE text COLLATE pg_catalog.\"default\""),
            "{answer:?}"
        );
    }
    assert_eq!(rows, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_key_finds_and_that_is_another_row_of_the_authority_stays() {
    let (answers, rows) = asked(&[Mutant::AnyCollation]).await;
    let states: Vec<RepairState> = answers.iter().map(|answer| answer.state).collect();
    assert_eq!(states, [RepairState::Refused, RepairState::Refused, RepairState::Done], "{answers:?}");
    let why = answers[0].detail.as_deref().unwrap_or_default();
    assert!(why.contains("is another row of the authority"), "{why}");
    assert_eq!(rows, 60);
}
