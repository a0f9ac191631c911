//! Rows whose key is `jsonb` are not looked up one by one: what helps them is a copy, and the command for it is told.

use super::corrupt;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn rows_that_only_a_copy_helps_are_refused_with_the_command_that_copies() {
    let setup = "CREATE TABLE k (id jsonb PRIMARY KEY, v int);
        INSERT INTO k SELECT jsonb_build_object('n', i), i FROM generate_series(1, 9) i";
    let (split, monolith, service) = Split::launch("{ k: {} }", setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    corrupt(&service, "UPDATE k SET v = -1 WHERE v IN (3, 4)").await;
    let refused = split.run("reconcile", &["--repair"]);
    assert_eq!(refused.exit, Some(1), "{}", refused.page());
    let next = "next: end the running mirror; then strangler mirror plan.yaml --slice one --retry k, which copies the table again";
    assert!(refused.stdout.contains(next), "{}", refused.page());
    assert!(!refused.stdout.contains("take away what refuses them"), "{}", refused.page());
    mirror.stop();
    let mirror = split.mirror_with(None, &["--slice", "one", "--retry", "k"]);
    let copied = "SELECT state = 'live' AND copy_number = 2 FROM strangler.mirror_table";
    until("the table is copied again", SOON, async || {
        service.query_one(copied, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    mirror.caught_up(&monolith, &service).await;
    let whole = split.run("reconcile", &[]);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());
}
