//! Partitions that log old rows under another replica identity than their table's: what leaves the filter there comes
//! without an old row. It stops the mirror, and no row stays behind.

use crate::support::binary::flat;
use crate::support::split::{Mirror, Split};
use crate::support::tables::{Side, assert_same};

const ORD: &str = "CREATE TABLE ord (id int, month int, region text NOT NULL, v text, PRIMARY KEY (id, month))
        PARTITION BY LIST (month);
    CREATE UNIQUE INDEX ord_u ON ord (id, month, region);
    CREATE TABLE ord_11 PARTITION OF ord FOR VALUES IN (11);
    ALTER TABLE ord REPLICA IDENTITY USING INDEX ord_u;
    ALTER TABLE ord_11 REPLICA IDENTITY USING INDEX ord_11_id_month_region_idx;
    INSERT INTO ord SELECT i, 11, CASE WHEN i % 2 = 0 THEN 'EU' ELSE 'US' END, 'v' FROM generate_series(1, 200) i;
    CREATE TABLE pf (id int, kind int, region text, v text, PRIMARY KEY (id, kind, region)) PARTITION BY LIST (kind);
    CREATE TABLE pf1 PARTITION OF pf FOR VALUES IN (1);
    CREATE UNIQUE INDEX pf1_u ON pf1 (id, kind);
    INSERT INTO pf SELECT i, 1, 'EU', 'v' FROM generate_series(1, 100) i;
    ANALYZE";
const PLAN: &str = "{ ord: { where: { region: EU } }, pf: { where: { region: EU } } }";

async fn assert_equal(split: &Split) {
    let (monolith, service) = (split.pair.monolith().await, split.pair.service().await);
    for table in ["ord", "pf"] {
        let ours = format!("SELECT * FROM {table} WHERE region = 'EU'");
        let theirs = format!("SELECT * FROM {table}");
        assert_same(Side { client: &monolith, query: &ours }, Side { client: &service, query: &theirs })
            .await;
    }
}

fn assert_stopped(mirror: &Mirror, words: &[&str]) {
    let (status, log) = mirror.ended();
    assert_eq!(status.code(), Some(3), "{log}");
    for word in words {
        assert!(log.contains(word), "{word} is missing: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_partition_that_comes_without_its_tables_identity_stops_the_mirror_and_the_advice_cures_it() {
    let (split, monolith, service) = Split::launch(PLAN, ORD).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    for sql in [
        "CREATE TABLE ord_12 PARTITION OF ord FOR VALUES IN (12)",
        "INSERT INTO ord SELECT i, 12, 'EU', 'v' FROM generate_series(1, 50) i",
        "UPDATE ord SET region = 'US' WHERE month = 12 AND id < 20",
    ] {
        monolith.batch_execute(sql).await.unwrap();
    }
    let statement = "ALTER TABLE public.ord_12 REPLICA IDENTITY USING INDEX ord_12_id_month_region_idx";
    assert_stopped(&mirror, &[statement, "--retry ord"]);
    let check = split.run("check", &[]);
    let advised =
        "ALTER TABLE \"public\".\"ord_12\" REPLICA IDENTITY USING INDEX \"ord_12_id_month_region_idx\"";
    let words = flat(&check.page());
    assert!(words.contains("partition-key-differs") && words.contains(advised), "{}", check.page());
    monolith.batch_execute(statement).await.unwrap();
    assert_stopped(&split.mirror(None), &["--retry ord"]);
    let mirror = split.mirror_with(None, &["--retry", "ord"]);
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&split).await;
    // With its identity from the beginning it comes freely.
    for sql in [
        "BEGIN; CREATE TABLE ord_13 PARTITION OF ord FOR VALUES IN (13);
         ALTER TABLE ord_13 REPLICA IDENTITY USING INDEX ord_13_id_month_region_idx; COMMIT",
        "INSERT INTO ord SELECT i, 13, 'EU', 'v' FROM generate_series(1, 50) i",
        "UPDATE ord SET region = 'US' WHERE month > 11 AND id < 30",
        "DELETE FROM ord WHERE id > 45",
    ] {
        monolith.batch_execute(sql).await.unwrap();
    }
    mirror.looked_twice(&service).await;
    mirror.caught_up(&monolith, &service).await;
    assert_equal(&split).await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_identity_that_was_another_one_for_a_moment_is_noticed_with_the_mirror_running_and_stopped() {
    let (split, monolith, service) = Split::launch(PLAN, ORD).await;
    split.provision();
    let mut mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let by_key = "ALTER TABLE ord_11 REPLICA IDENTITY DEFAULT; UPDATE ord SET region = 'US' WHERE id = 2;
        ALTER TABLE ord_11 REPLICA IDENTITY USING INDEX ord_11_id_month_region_idx";
    let by_index =
        "ALTER TABLE pf1 REPLICA IDENTITY USING INDEX pf1_u; UPDATE pf SET region = 'US' WHERE id < 4;
        ALTER TABLE pf1 REPLICA IDENTITY DEFAULT";
    for (sql, table, stopped) in [
        (by_key, "ord", false),
        (by_index, "pf", false),
        (&*by_key.replace("id = 2", "id = 4"), "ord", true),
        (&*by_index.replace("id < 4", "id < 8"), "pf", true),
    ] {
        mirror.looked_twice(&service).await;
        if stopped {
            mirror.stop();
        }
        monolith.batch_execute(sql).await.unwrap();
        if stopped {
            mirror = split.mirror(None);
        }
        assert_stopped(&mirror, &["another replica identity for a while", &format!("--retry {table}")]);
        mirror = split.mirror_with(None, &["--retry", table]);
        mirror.caught_up(&monolith, &service).await;
        assert_equal(&split).await;
    }
    mirror.stop();
}
