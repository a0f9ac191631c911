//! Casts to text and from it that the application made: what they say of a value is not the value.

use strangler::reconcile::finding::FindingKind::{Differs, Missing};
use strangler::reconcile::finding::Shown;
use tokio_postgres::Client;

use super::found::Run;
use super::stage::corrupt;
use crate::support::split::Split;

const SETUP: &str = "CREATE ROLE strangler_apply LOGIN;
    CREATE TYPE mood AS ENUM ('sad', 'fine'); CREATE DOMAIN temper AS mood; CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN code AS char(8);
    CREATE TABLE moods (id int PRIMARY KEY, mood mood, temper temper, moods mood[], pair pair, code code);
    INSERT INTO moods SELECT i, 'sad', 'sad', '{sad,NULL}', (NULL, NULL)::pair, 'c' FROM generate_series(1, 100) i;
    CREATE TABLE kinds (kind mood, n int, v text, PRIMARY KEY (kind, n));
    INSERT INTO kinds SELECT 'sad', i, 'v' FROM generate_series(1, 50) i;
    INSERT INTO kinds SELECT 'fine', i, 'v' FROM generate_series(1, 50) i; ANALYZE";

/// Everything is one text.
async fn cast(client: &Client) {
    for of in ["mood", "mood[]", "pair"] {
        let name = of.trim_end_matches("[]").len() + of.len();
        let sql = format!(
            "CREATE FUNCTION text_{name}({of}) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'sad' $$; \
             CREATE CAST ({of} AS text) WITH FUNCTION text_{name}({of}); \
             GRANT EXECUTE ON FUNCTION text_{name}({of}) TO PUBLIC"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_cast_to_text_of_the_users_own_hides_no_difference() {
    let (split, monolith, service) = Split::launch("{ moods: {}, kinds: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    cast(&monolith).await;
    cast(&service).await;
    for strict in [&["--strict"][..], &[]] {
        Run::of(&split, strict).assert_clean();
    }
    corrupt(
        &service,
        "UPDATE moods SET mood = 'fine' WHERE id = 1; UPDATE moods SET temper = 'fine' WHERE id = 2;
         UPDATE moods SET moods = '{fine}' WHERE id = 3; UPDATE moods SET pair = (NULL, '') WHERE id = 4;
         UPDATE moods SET pair = NULL WHERE id = 5; UPDATE moods SET mood = NULL WHERE id = 6;
         UPDATE moods SET code = 'd' WHERE id = 7;
         UPDATE kinds SET v = 'w' WHERE kind = 'fine' AND n = 3; DELETE FROM kinds WHERE kind = 'fine' AND n = 5",
    )
    .await;
    let run = Run::of(&split, &[]);
    let told = |table: &str, kind, key: &[&str], columns: &[&str]| {
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        (table.to_owned(), kind, texts(key), texts(columns))
    };
    let expected = [
        told("kinds", Missing, &["fine", "5"], &[]),
        told("kinds", Differs, &["fine", "3"], &["v"]),
        told("moods", Differs, &["1"], &["mood"]),
        told("moods", Differs, &["2"], &["temper"]),
        told("moods", Differs, &["3"], &["moods"]),
        told("moods", Differs, &["4"], &["pair"]),
        told("moods", Differs, &["5"], &["pair"]),
        told("moods", Differs, &["6"], &["mood"]),
        told("moods", Differs, &["7"], &["code"]),
    ];
    assert_eq!((run.told(), run.reasons().as_str()), (expected.to_vec(), ""), "{}", run.ended.page());
    let shown: Vec<_> = run.document.slices[0]
        .findings
        .iter()
        .flat_map(|found| found.columns.iter().map(|column| (&column.authority, &column.copy)))
        .collect();
    let text = |text: &str| Shown::Text(text.to_owned());
    assert!(shown.contains(&(&text("sad"), &text("fine"))), "{}", run.ended.page());
    assert!(shown.contains(&(&text("{sad,NULL}"), &text("{fine}"))), "{}", run.ended.page());
    assert!(shown.contains(&(&text("(,)"), &Shown::Null)), "{}", run.ended.page());
    let run = Run::of(&split, &["--repair"]);
    assert_eq!(run.ended.exit, Some(0), "{}", run.ended.page());
    Run::of(&split, &["--strict"]).assert_clean();
}

/// Every text is one value, to whoever asks the cast and not the type.
async fn cast_from_text(client: &Client) {
    for (of, value) in [("mood", "sad"), ("pair", "(0,)")] {
        let sql = format!(
            "CREATE FUNCTION {of}_of_text(text) RETURNS {of} LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN '{value}'; END $$; \
             CREATE CAST (text AS {of}) WITH FUNCTION {of}_of_text(text)"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_from_text_of_the_users_own_decides_neither_what_is_mirrored_nor_what_is_compared() {
    let (split, monolith, service) = Split::launch("{ moods: {}, kinds: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    cast_from_text(&monolith).await;
    cast_from_text(&service).await;
    // Small sets of rows go through statements, and these through every form of them.
    let writes = r#"UPDATE moods SET mood = 'fine', temper = 'fine', moods = '{fine,NULL}' WHERE id <= 3;
        INSERT INTO moods VALUES (101, 'fine', 'fine', '{}', ROW(1, 'a "b" \c, {d}; ')::pair, 'c'), (102, NULL, NULL, NULL, NULL, NULL);
        UPDATE kinds SET v = 'w' WHERE kind = 'fine' AND n <= 9; UPDATE kinds SET kind = 'fine', n = 100 WHERE kind = 'sad' AND n = 1;
        DELETE FROM kinds WHERE kind = 'fine' AND n = 10"#;
    monolith.batch_execute(writes).await.unwrap();
    mirror.caught_up(&monolith, &service).await;
    for strict in [&["--strict"][..], &[]] {
        Run::of(&split, strict).assert_clean();
    }
    let rows = "SELECT count(*) FROM moods WHERE mood = 'fine' AND temper::mood = 'fine'";
    assert_eq!(service.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 4);
    corrupt(
        &service,
        "UPDATE kinds SET v = 'x' WHERE kind = 'fine' AND n = 3; DELETE FROM kinds WHERE kind = 'fine' AND n = 5;
         UPDATE moods SET mood = 'sad', pair = (1, 'a') WHERE id = 101",
    )
    .await;
    let run = Run::of(&split, &[]);
    let told = |table: &str, kind, key: &[&str], columns: &[&str]| {
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        (table.to_owned(), kind, texts(key), texts(columns))
    };
    let expected = [
        told("kinds", Missing, &["fine", "5"], &[]),
        told("kinds", Differs, &["fine", "3"], &["v"]),
        told("moods", Differs, &["101"], &["mood", "pair"]),
    ];
    assert_eq!((run.told(), run.reasons().as_str()), (expected.to_vec(), ""), "{}", run.ended.page());
    let repaired = Run::of(&split, &["--repair"]);
    assert_eq!(repaired.ended.exit, Some(0), "{}", repaired.ended.page());
    Run::of(&split, &["--strict"]).assert_clean();
}
