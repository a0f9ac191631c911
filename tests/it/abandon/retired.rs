//! Old tables that were taken away keep their slice; once all of it is taken back, the slice goes and leaves nothing.

use super::{abandon, refused, succeed, take_back, token};
use crate::flip::{complete, flip_to_service, mirrored_and_armed};
use crate::support::catalogs::{assert_untouched, catalogs};
use crate::support::split::Split;
use crate::support::tables::{Side, assert_same};
use crate::support::wait::{SOON, until};

const PLAN: &str = "version: 1\nplan: split\nmonolith: { url: \"${MONOLITH}\" }
services: { service: { url: \"${SERVICE}\" } }
slices: { one: { service: service, tables: { shop.orders: {}, lines: {} } } }
policy: { min_mirror_time: 0s, write_pause_budget: 2s, safety_period: 0s, quiet_period: 0s, clean_runs_before_retire: 1 }\n";

const SETUP: &str = "CREATE ROLE app LOGIN; CREATE ROLE clerk; CREATE SCHEMA shop;
    CREATE TABLE shop.orders (id int PRIMARY KEY, v text); CREATE TABLE lines (id serial PRIMARY KEY, of_order int REFERENCES shop.orders);
    GRANT SELECT, UPDATE ON shop.orders TO app WITH GRANT OPTION; GRANT UPDATE (v) ON shop.orders TO clerk; GRANT SELECT ON lines TO PUBLIC;
    INSERT INTO shop.orders SELECT i, 'v' || i FROM generate_series(1, 30) i; INSERT INTO lines (of_order) SELECT id FROM shop.orders";

/// Takes a stage of retirement as it is shown.
fn stage(split: &Split, arguments: &[&str]) {
    let arguments = [&["--stage"], arguments].concat();
    let shown = token(&split.run("retire", &arguments));
    succeed(split, "retire", &[&arguments[..], &["--confirm", &shown]].concat());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_slice_whose_old_tables_are_away_or_archived_stays_until_all_of_it_has_come_back() {
    let (split, monolith, service) = Split::with_plan(PLAN, SETUP).await;
    let before = catalogs(&monolith).await;
    split.provision();
    let mirror = mirrored_and_armed(&split, &monolith, &service).await;
    flip_to_service(&split, &mirror);
    let watched = "SELECT count(*) >= 2 FROM strangler.table_use";
    until("the old tables are watched", SOON, async || {
        monolith.query_one(watched, &[]).await.unwrap().get::<_, bool>(0).then_some(())
    })
    .await;
    monolith.batch_execute("UPDATE strangler.table_use SET since = now() - interval '1 hour'").await.unwrap();
    succeed(&split, "reconcile", &[]);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("archive");
    for arguments in [&["revoke"][..], &["quarantine"], &["archive", "--to", to.to_str().unwrap()]] {
        stage(&split, arguments);
        let stays = abandon(&split, "one", &[]);
        for code in ["service-has-authority", "armed", "retired"] {
            refused(&stays, code, &["strangler unretire plan.yaml --slice one"]);
        }
    }
    service.batch_execute("UPDATE shop.orders SET v = 'of the service' WHERE id = 1").await.unwrap();
    succeed(&split, "unretire", &[]);
    complete(&split, &mirror, &["--back", "--accept-no-evidence", "a test looks at every row afterwards"]);
    refused(&abandon(&split, "one", &[]), "armed", &["strangler disarm plan.yaml --slice one"]);
    succeed(&split, "disarm", &[]);
    mirror.stop();
    for table in ["shop.orders", "lines"] {
        let query = format!("TABLE {table}");
        assert_same(Side { client: &monolith, query: &query }, Side { client: &service, query: &query })
            .await;
    }
    take_back(&split, "one", &[]);
    assert_untouched(&before, &catalogs(&monolith).await);
    let kept = "SELECT v FROM shop.orders WHERE id = 1";
    assert_eq!(monolith.query_one(kept, &[]).await.unwrap().get::<_, String>(0), "of the service");
}
