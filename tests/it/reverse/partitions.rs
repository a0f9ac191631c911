//! The service's table takes keys for which the monolith's has no partition.

use super::stage::{Stage, Way, holds};
use crate::support::binary::flat;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SCHEMA: &str = "CREATE ROLE strangler_apply LOGIN;
CREATE TABLE par (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE par1 PARTITION OF par FOR VALUES IN (1);
CREATE TABLE whole (id int, d int, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE whole1 PARTITION OF whole FOR VALUES FROM (MINVALUE) TO (0);
CREATE TABLE whole2 PARTITION OF whole FOR VALUES FROM (0) TO (MAXVALUE);
CREATE TABLE caught (id int, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE caught1 PARTITION OF caught DEFAULT;
INSERT INTO par SELECT i, 1, 'v' FROM generate_series(1, 10) i;";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_partition_takes_is_foreseen_and_its_partition_lets_the_way_back_go_on() {
    let (split, monolith, service) = Split::launch("{ par: {}, whole: {}, caught: {} }", SCHEMA).await;
    let stage = Stage { split, monolith, service };
    let check = stage.split.run("check", &[]);
    assert!(check.stdout.contains("par (open-partitions"), "{}", check.page());
    assert_eq!(check.stdout.matches("(open-partitions").count(), 1, "{}", check.page());
    stage.split.provision();
    let mirror = stage.split.mirror(None);
    mirror.caught_up(&stage.monolith, &stage.service).await;
    let armed = stage.split.run("arm", &[]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    assert!(armed.stderr.contains("par (open-partitions"), "{}", armed.page());
    stage.watched(Way::Reverse).await;
    stage.flip(2).await;
    stage.on_service("INSERT INTO par VALUES (100, 7, 'no partition')").await;
    let stopped =
        "SELECT bool_or(stopped_at IS NOT NULL) FROM strangler.mirror_process WHERE dir = 'reverse'";
    until("the way back stops", SOON, async || holds(&stage.monolith, stopped).await.then_some(())).await;
    let status = stage.split.run("status", &[]);
    let told = flat(&status.page());
    assert!(told.contains("the monolith has no partition of par for a row that the service wrote"), "{told}");
    assert!(told.contains("PARTITION OF \"public\".\"par\" FOR VALUES"), "{told}");
    assert!(!told.contains("--retry"), "reading the row again would change nothing: {told}");
    stage.on_monolith("CREATE TABLE par7 PARTITION OF par FOR VALUES IN (7)").await;
    let armed = stage.split.run("arm", &["--slice", "one"]);
    assert_eq!(armed.exit, Some(0), "{}", armed.page());
    mirror.stop();
    let mirror = stage.split.mirror(None);
    stage.arrived(Way::Reverse).await;
    assert_eq!(stage.count(&stage.monolith, "SELECT count(*) FROM par7").await, 1);
    // Who owns a table is no superuser, and makes its partitions: that takes the right to hang the gate on them.
    stage
        .on_monolith(
            "CREATE ROLE keeper; GRANT CREATE ON SCHEMA public TO keeper; ALTER TABLE whole OWNER TO keeper; \
             DROP TABLE whole2; SET ROLE keeper; CREATE TABLE whole3 PARTITION OF whole FOR VALUES FROM (0) TO (10); \
             CREATE TABLE whole4 PARTITION OF whole FOR VALUES FROM (10) TO (MAXVALUE); RESET ROLE",
        )
        .await;
    mirror.stop();
}
