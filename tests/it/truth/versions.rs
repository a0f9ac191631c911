//! Two servers that are not alike: another major version, another collation provider.

use strangler::cluster::{Binaries, Options};
use strangler::reconcile::finding::FindingKind::{Differs, Extra, Missing};

use super::found::Run;
use super::stage::corrupt;
use crate::support::cluster::{Pair, launch_with, options};
use crate::support::say;
use crate::support::split::Split;

const PLAN: &str = "version: 1
plan: split
monolith: { url: '${MONOLITH}' }
services: { service: { url: '${SERVICE}' } }
slices: { one: { service: service, tables: { words: {}, facts: {}, letters: {} } } }
";

/// A type for each way that a value is hashed, and keys whose order the two sides may not share.
const SETUP: &str = r#"
CREATE TYPE filler AS ENUM ('only', 'to', 'shift', 'oids'); CREATE TYPE mood AS ENUM ('sad', 'fine');
CREATE TABLE words (word text PRIMARY KEY, n int);
INSERT INTO words SELECT (ARRAY['a-', 'A ', 'ä', 'é', 'Z', 'z', 'ß', '_'])[1 + i % 8] || i, i FROM generate_series(1, 4000) i;
CREATE TABLE letters (letter "char" PRIMARY KEY, n int);
INSERT INTO letters SELECT chr(64 + i)::"char", i FROM generate_series(1, 26) i;
CREATE TABLE facts (id bigint PRIMARY KEY, price numeric, ratio float8, small real, span interval, seen timestamptz,
    at timestamp, day date, doc jsonb, raw json, addr inet, mac macaddr, bits bytea, tags text[], nums numeric[],
    mood mood, moods mood[], range int4range, place point, uid uuid, ok bool, code char(4), three bit(3));
INSERT INTO facts SELECT i, i / 7.0, i / 7.0::float8, i / 7.0::real, i * interval '1 minute', timestamptz '2026-01-01Z' + i * interval '1 h',
    timestamp '2026-01-01' + i * interval '1 s', date '2026-01-01' + i::int, jsonb_build_object('a', i / 3.0, 'b', NULL), '{"x" : 1}',
    '10.0.0.0'::inet + i, '08:00:2b:01:02:03', int8send(i), ARRAY['a', NULL, i::text], ARRAY[1.0, i], 'fine', '{sad,fine}',
    int4range(1, 2 + i::int), point(i, 0.1), md5(i::text)::uuid, i % 2 = 0, 'c', B'101'
FROM generate_series(1, 2000::bigint) i; ANALYZE;"#;

fn server(binaries: &Binaries) -> strangler::cluster::LocalCluster {
    launch_with(Options { binaries: Some(binaries.clone()), ..options() })
}

async fn told(monolith: &Binaries, service: &Binaries, database: &str) {
    let major = service.version.major;
    let pair = Pair::of(server(monolith), server(service), database).await;
    let (split, monolith, service) = Split::between(pair, PLAN, SETUP).await;
    split.provision();
    let mirror = split.mirror_as(None, &[]);
    mirror.caught_up(&monolith, &service).await;
    for arguments in [&[][..], &["--strict"]] {
        Run::of(&split, arguments).assert_clean();
    }
    corrupt(
        &service,
        "UPDATE words SET word = 'A-8' WHERE word = 'a-8'; UPDATE words SET n = 0 WHERE word = 'ß6'; \
         UPDATE facts SET mood = 'sad' WHERE id = 10; UPDATE facts SET raw = '{\"x\":1}' WHERE id = 20; \
         UPDATE facts SET doc = doc || '{\"b\": 0}' WHERE id = 30; DELETE FROM facts WHERE id = 2000",
    )
    .await;
    for arguments in [&[][..], &["--strict"]] {
        let run = Run::of(&split, arguments);
        assert_eq!(run.ended.exit, Some(1), "{}", run.ended.page());
        assert_eq!(run.counts(), [(Missing, 2), (Extra, 1), (Differs, 4)].into(), "{:?}", run.told());
        let columns: Vec<String> = run.told().into_iter().flat_map(|(.., columns)| columns).collect();
        assert_eq!(columns, ["mood", "raw", "doc", "n"]);
    }
    if major < 18 {
        return;
    }
    // NOT NULL for new rows only: rows without a key lie in no bucket.
    let loosen =
        "ALTER TABLE letters DROP CONSTRAINT letters_pkey; ALTER TABLE letters ALTER letter DROP NOT NULL";
    service.batch_execute(loosen).await.unwrap();
    corrupt(&service, "INSERT INTO letters VALUES (NULL, 0)").await;
    service
        .batch_execute("ALTER TABLE letters ADD CONSTRAINT filled NOT NULL letter NOT VALID")
        .await
        .unwrap();
    assert_eq!(Run::of(&split, &["--table", "letters"]).counts(), [(Extra, 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_are_far_apart_are_compared_alike() {
    let installed = Binaries::find_all().unwrap();
    let of = |major| installed.iter().find(|binaries| binaries.version.major == major);
    for (monolith, service) in [(14, 18), (18, 14)] {
        if let (Some(monolith), Some(service)) = (of(monolith), of(service)) {
            say(&format!("reconciled from {} to {}", monolith.version, service.version));
            told(monolith, service, "").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collations_of_other_providers_are_compared_alike() {
    let binaries = Binaries::find().unwrap();
    if binaries.version.major < 15 {
        say("PostgreSQL 14 has no databases of ICU's collations");
        return;
    }
    let icu = "TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'";
    told(&binaries, &binaries, icu).await;
}
