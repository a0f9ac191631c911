//! Plain inheritance that comes after the mirror began: rows of a child are read with the table and are not in its stream, and
//! what is written through a parent asks no gate of the child.

use crate::flip::{armed, flip_to_service};
use crate::support::binary::Ended;
use crate::support::split::Split;
use crate::support::wait::{SOON, until_blocking};

/// The command that `status` names.
fn next(ended: &Ended) -> &str {
    let line = ended.stdout.lines().find_map(|line| line.trim().strip_prefix("next "));
    line.unwrap_or_else(|| panic!("{}", ended.page())).trim()
}

const TABLE: &str = "CREATE TABLE inh (id int PRIMARY KEY, v int); INSERT INTO inh SELECT i, i FROM generate_series(1, 20) i; ANALYZE";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_child_that_comes_later_stops_the_mirror_and_nothing_is_proven_armed_or_moved_over_its_rows() {
    let (split, monolith, service) = Split::launch("{ inh: {} }", TABLE).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    assert_eq!(split.run("reconcile", &[]).exit, Some(0));
    monolith
        .batch_execute("CREATE TABLE child (extra int) INHERITS (inh); INSERT INTO child VALUES (900, 1, 1)")
        .await
        .unwrap();
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    let undo = "ALTER TABLE \"public\".\"child\" NO INHERIT \"public\".\"inh\"";
    assert!(log.contains("child inherits from inh") && log.contains(undo), "{log}");
    let (_, again) = split.mirror(None).ended();
    assert!(again.contains(undo), "{again}");
    let compared = split.run("reconcile", &["--fresh"]);
    assert_eq!(compared.exit, Some(5), "{}", compared.page());
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    let refused = split.run("arm", &[]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.page().contains("(inheritance)") && refused.page().contains(undo), "{}", refused.page());

    monolith.batch_execute(undo).await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());

    // A view in the place of the service's table takes every row and shows only some.
    let view = "ALTER TABLE inh RENAME TO inh_v2; CREATE VIEW inh AS SELECT * FROM inh_v2 WHERE id > 1; \
                GRANT ALL ON inh TO strangler_apply";
    service.batch_execute(view).await.unwrap();
    let (fact, undo) = (
        "inh is a view in place of the table",
        "ALTER VIEW \"public\".\"inh\" RENAME TO …; ALTER TABLE … RENAME TO \"inh\"",
    );
    let compared = split.run("reconcile", &["--fresh"]);
    assert_eq!(compared.exit, Some(5), "{}", compared.page());
    assert!(compared.stdout.contains(fact), "{}", compared.page());
    let (status, log) = mirror.ended();
    assert!(status.code() == Some(3) && log.contains(fact) && log.contains(undo), "{log}");
    let (_, again) = split.mirror(None).ended();
    assert!(again.contains(undo), "{again}");
    for verb in ["arm", "provision"] {
        let refused = split.run(verb, &[]);
        assert_eq!(refused.exit, Some(3), "{}", refused.page());
        let page = refused.page();
        assert!(page.contains("(not-a-table)") && page.contains(fact) && page.contains(undo), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_moved_table_that_becomes_a_child_is_red_and_does_not_flip() {
    let (split, monolith, _service, mirror) = armed().await;
    let (into, out) = (
        "ALTER TABLE notes INHERIT above",
        "ALTER TABLE \"public\".\"notes\" NO INHERIT \"public\".\"above\"",
    );
    let shape = "CREATE TABLE above (LIKE notes)";
    monolith.batch_execute(&format!("{shape}; {into}")).await.unwrap();
    let red = split.run("status", &[]);
    assert_eq!(red.exit, Some(1), "{}", red.page());
    assert!(red.stdout.contains("notes inherits from above"), "{}", red.page());
    assert_eq!(next(&red), format!("run on the monolith: {out}; or attach it as a partition"));
    let refused = split.run("flip", &["--accept-no-evidence", "a test"]);
    assert_eq!(refused.exit, Some(3), "{}", refused.page());
    assert!(refused.stderr.contains("(inheritance)") && refused.stderr.contains(out), "{}", refused.page());

    monolith.batch_execute(out).await.unwrap();
    flip_to_service(&split, &mirror);
    // The closed side's rows must not be written through another table either.
    monolith.batch_execute(into).await.unwrap();
    let red = until_blocking("status is red", SOON, || {
        let ended = split.run("status", &[]);
        (ended.exit == Some(1)).then_some(ended)
    });
    assert!(next(&red).contains(out), "{}", red.page());
    monolith.batch_execute(out).await.unwrap();
    until_blocking("status is green again", SOON, || {
        (split.run("status", &[]).exit == Some(0)).then_some(())
    });
    mirror.stop();
}
