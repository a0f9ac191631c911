//! A table that does not fit the plan any more stops its own slice, and no other one.

use super::stage::{Stage, rows};
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_does_not_fit_the_monolith_any_more_stops_itself_and_no_other_slice() {
    let stage = Stage::armed().await;
    stage.monolith.batch_execute("ALTER TABLE products DROP CONSTRAINT products_pkey").await.unwrap();
    // Killed behind the word about it, the next start says the same.
    stage.split.mirror(Some("word-left")).died_at("word-left");
    // A table of the plan is no unknown one because its slice does not fit.
    let mirror = stage.split.mirror_with(None, &["--retry", "products"]);
    stage.monolith.batch_execute("UPDATE \"Orders\" SET note = 'still mirrored' WHERE id = 1").await.unwrap();
    until("the slice that fits is mirrored", SOON, async || {
        assert!(mirror.exited().is_none(), "the mirror ended:\n{}", mirror.log());
        let note = rows(&stage.service, "SELECT note FROM orders WHERE id = 1").await;
        (note == ["still mirrored"]).then_some(())
    })
    .await;
    assert!(
        mirror.log().contains("slice two is not mirrored, because of these problems"),
        "{}",
        mirror.log()
    );

    let status = stage.run("status", &["--slice", "two", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let told = &document["slices"][0];
    assert_eq!((told["phase"].as_str(), status.exit), (Some("stopped"), Some(1)), "{told:#}");
    assert!(
        told["alarms"][0]
            .as_str()
            .unwrap()
            .contains("slice two does not fit the monolith's tables: products:")
    );
    assert_eq!(told["next"], "strangler check plan.yaml");

    // The referenced table's rows may be the other slice's, whose mapping nobody knows at present.
    let compared = stage.run("reconcile", &["--slice", "one"]);
    assert_eq!(compared.exit, Some(5), "{}", compared.page());
    assert!(compared.page().contains("slice two takes it"), "{}", compared.page());
    let flip = stage.run("flip", &["--slice", "one", "--back"]);
    assert!(!flip.page().contains("plan-unfit"), "{}", flip.page());
    let unfit = stage.run("flip", &["--slice", "two", "--back"]);
    assert_eq!(unfit.exit, Some(2), "{}", unfit.page());
    assert!(unfit.stderr.contains("error[plan-unfit]"), "{}", unfit.page());

    let all = stage.run("disarm", &["--dry-run"]);
    assert_eq!(all.exit, Some(3), "{}", all.page());
    stage.succeed("disarm", &["--slice", "one"]);
    let cut = "SELECT slice, name FROM strangler.cut_key WHERE restored_at IS NULL ORDER BY name";
    assert_eq!(
        rows(&stage.monolith, cut).await,
        ["two|fk_move_product", "two|fk_product"],
        "an armed slice still needs its keys gone, whether its tables fit or not"
    );
    stage.succeed("arm", &["--slice", "one"]);
    mirror.stop();
    let ended = mirror.log();
    assert!(ended.contains("error[mirror-refused]: slice two does not fit"), "{ended}");
    let both = stage.run("mirror", &["--slice", "two"]);
    assert_eq!(both.exit, Some(2), "{}", both.page());
}
