//! Runs that look at nothing, or that nobody could read of.

use super::found::Run;
use crate::support::split::Split;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_looked_at_is_never_clean_and_a_report_that_can_not_be_written_is_refused_before_the_run() {
    let setup = "CREATE TABLE few (id int PRIMARY KEY); INSERT INTO few VALUES (1), (2)";
    let (split, monolith, service) = Split::launch("{ few: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for share in ["1e-300%", "0.001%"] {
        let ended = split.run("reconcile", &["--sample", share]);
        assert_eq!(ended.exit, Some(2), "{}", ended.page());
    }
    for file in [".", "no-such-folder/report.json"] {
        let ended = split.run("reconcile", &["--output", file]);
        assert_eq!(ended.exit, Some(5), "{}", ended.page());
        assert!(ended.stderr.contains("could not be written to"), "{}", ended.page());
    }
    let entries = "SELECT count(*) FROM strangler.ledger WHERE kind = 'verdict'";
    assert_eq!(service.query_one(entries, &[]).await.unwrap().get::<_, i64>(0), 0, "refused before the run");
    let nothing = split.run("reconcile", &["--slice", "one", "--changed-since", "last"]);
    assert_eq!(nothing.exit, Some(3), "{}", nothing.page());
    let next = "strangler reconcile plan.yaml --slice one, without --changed-since";
    assert!(nothing.stderr.contains(next), "{}", nothing.page());
    // Of two rows one in 50,000 takes none, but for one run in 25,000.
    Run::of(&split, &["--sample", "0.002%"]).assert_incomplete(&["took no row of any table"]);
}
