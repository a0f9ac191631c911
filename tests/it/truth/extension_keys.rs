//! Keys of types that extensions bring: a mirror follows them, differences under them are proven through the index, and
//! repaired.

use strangler::reconcile::finding::FindingKind::{Differs, Extra, Missing, Orphan};
use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::{Mirror, Split};
use crate::support::wait::{SOON, until};

const EXTENSIONS: &str = "CREATE EXTENSION citext; CREATE SCHEMA trees; CREATE EXTENSION ltree SCHEMA trees;";
/// What refers to rows that stay on the monolith.
const REFERRING: &str = "CREATE TABLE kinds (kind citext PRIMARY KEY); INSERT INTO kinds VALUES ('Big'), ('Small');
    CREATE TABLE spots (spot trees.ltree PRIMARY KEY); INSERT INTO spots VALUES ('top.a'), ('top.b');
    CREATE TABLE notes (id int PRIMARY KEY, kind citext, spot trees.ltree);
    INSERT INTO notes VALUES (1, 'big', 'top.a'), (2, 'BIG', 'top.b'), (3, 'Small', NULL), (4, 'none', 'top.a'),
        (5, 'None', NULL), (6, NULL, 'top.c')";

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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn differences_under_an_extensions_key_are_proven_through_its_index_and_repaired() {
    let (split, monolith, service, mirror) = open().await;
    corrupt(
        &service,
        "UPDATE words SET v = -1 WHERE word = 'word7'; DELETE FROM words WHERE word = 'word8';
         UPDATE words SET word = 'WORD9' WHERE word = 'word9'; INSERT INTO words VALUES ('extra', 1);
         UPDATE tags SET tag = 'TAG7' WHERE tag = 'tag7'; DELETE FROM tags WHERE tag = 'tag8';
         UPDATE places SET v = -1 WHERE v = 7; UPDATE places SET place = 'top.other' WHERE v = 8",
    )
    .await;
    for strict in [&["--strict"][..], &[]] {
        let run = Run::of(&split, strict);
        let told = |table: &str, kind, key: &[&str], columns: &[&str]| {
            let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            (table.to_owned(), kind, texts(key), texts(columns))
        };
        // Either spelling names the row; the one that is first in the order of bytes is told.
        let expected = [
            told("places", Missing, &["top.p8"], &[]),
            told("places", Extra, &["top.other"], &[]),
            told("places", Differs, &["top.p7"], &["v"]),
            told("tags", Missing, &["Tag8", "8"], &[]),
            told("tags", Differs, &["TAG7", "7"], &["tag"]),
            told("words", Missing, &["Word8"], &[]),
            told("words", Extra, &["extra"], &[]),
            told("words", Differs, &["WORD9"], &["word"]),
            told("words", Differs, &["Word7"], &["v"]),
        ];
        assert_eq!((run.told(), run.reasons().as_str()), (expected.to_vec(), ""), "{}", run.ended.page());
    }
    for index in ["words_pkey", "tags_pkey", "places_pkey"] {
        used(&monolith, index, 0).await;
        used(&service, index, 0).await;
    }
    let run = Run::of(&split, &["--repair"]);
    assert_eq!(run.ended.exit, Some(0), "{}", run.ended.page());
    mirror.caught_up(&monolith, &service).await;
    Run::of(&split, &["--strict"]).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_of_an_extensions_type_is_no_orphan_where_its_own_equality_finds_the_row() {
    let tables = "{ notes: { columns: { kind: { references: kinds }, spot: { references: spots } } } }";
    let (split, monolith, service) =
        Split::launch(tables, &format!("{EXTENSIONS} GRANT USAGE ON SCHEMA trees TO PUBLIC; {REFERRING}"))
            .await;
    service.batch_execute(&format!("{EXTENSIONS} GRANT USAGE ON SCHEMA trees TO PUBLIC")).await.unwrap();
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let run = Run::of(&split, &[]);
    let keys: Vec<_> = run.told().into_iter().map(|(_, kind, key, _)| (kind, key[0].clone())).collect();
    let expected = ["4", "5", "6"].map(|key| (Orphan, key.to_owned()));
    assert_eq!((keys, run.reasons().as_str()), (expected.to_vec(), ""), "{}", run.ended.page());
    assert_eq!(run.counts(), [(Orphan, 3)].into());
}
