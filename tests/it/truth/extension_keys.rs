//! Keys of types that extensions bring: a mirror follows them.

use tokio_postgres::Client;

use super::found::Run;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

const EXTENSIONS: &str = "CREATE EXTENSION citext; CREATE SCHEMA trees; CREATE EXTENSION ltree SCHEMA trees;";
const SETUP: &str = "CREATE DOMAIN tag AS citext;
    CREATE TABLE words (word citext PRIMARY KEY, v int);
    INSERT INTO words SELECT 'Word' || i, i FROM generate_series(1, 3000) i;
    CREATE TABLE tags (a int, tag tag, v int, PRIMARY KEY (tag, a));
    INSERT INTO tags SELECT i, 'Tag' || i, i FROM generate_series(1, 300) i;
    CREATE TABLE places (place trees.ltree PRIMARY KEY, v int);
    INSERT INTO places SELECT ('top.p' || i)::trees.ltree, i FROM generate_series(1, 3000) i; ANALYZE";

async fn open() -> (Split, Client, Client, Mirror) {
    let tables = "{ words: {}, tags: {}, places: {} }";
    let setup = format!("CREATE ROLE strangler_apply LOGIN; {EXTENSIONS} {SETUP}");
    let (split, monolith, service) = Split::launch(tables, &setup).await;
    service.batch_execute(EXTENSIONS).await.unwrap();
    let schema = "GRANT USAGE ON SCHEMA trees TO PUBLIC";
    monolith.batch_execute(schema).await.unwrap();
    service.batch_execute(schema).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    (split, monolith, service, mirror)
}

/// How often an index was used, once that is more than `before`: sessions tell it when they end.
async fn used(client: &Client, index: &str, before: i64) -> i64 {
    let sql = format!("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
    until(&format!("{index} is used"), SOON, async || {
        let scans: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
        (scans > before).then_some(scans)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_finds_the_rows_of_an_extensions_key() {
    let (split, monolith, service, mirror) = open().await;
    for sql in [
        "UPDATE words SET v = 0 WHERE word = 'word7'; DELETE FROM words WHERE word = 'word8'",
        "UPDATE words SET word = 'WORD9' WHERE word = 'word9'",
        "UPDATE tags SET v = 0 WHERE tag = 'tag7'; DELETE FROM tags WHERE tag = 'tag8'",
        "UPDATE places SET v = 0 WHERE v = 7; DELETE FROM places WHERE v = 8",
        "UPDATE places SET place = 'top.other' WHERE v = 9",
    ] {
        monolith.batch_execute(sql).await.unwrap();
    }
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
    used(&service, "places_pkey", 0).await;
    used(&service, "words_pkey", 0).await;
}
