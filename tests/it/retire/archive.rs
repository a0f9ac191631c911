//! What old tables hold is kept in files that prove themselves, and comes back from them as it was, or not at all.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::pin::pin;

use futures_util::SinkExt as _;
use strangler::cluster::Cluster;
use strangler::failpoint;
use strangler::lsn::Lsn;
use tokio_postgres::Client;

use super::quarantine::{move_away, place};
use super::{SETUP, TABLES, entries, refused, revoke, ripe, ripe_of, take, token, undo_that_status_names};
use crate::support::binary::Ended;
use crate::support::cluster::{connect, create_database};
use crate::support::every_third;
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

/// A column for every type that PostgreSQL brings and that a value of can be read again, with a value that is easily lost.
const BUILT_IN: &[(&str, &str)] = &[
    ("bool", "t"),
    ("bytea", r"\x00ff5c0a"),
    ("\"char\"", "x"),
    ("name", "a name"),
    ("int2", "-32768"),
    ("int4", "2147483647"),
    ("int8", "-9223372036854775808"),
    ("oid", "4294967295"),
    ("oidvector", "1 2"),
    ("int2vector", "1 2"),
    ("text", "tab\tline\nback\\slash \\N ünï"),
    ("varchar(9)", " \\. "),
    ("char(5)", "ab"),
    ("float4", "1e-45"),
    ("float8", "0.30000000000000004"),
    ("numeric", "1.500"),
    ("money", "-1234.56"),
    ("date", "0044-03-15 BC"),
    ("time", "24:00:00"),
    ("timetz", "01:02:03.000004+05:30"),
    ("timestamp", "infinity"),
    ("timestamptz", "2026-01-02 03:04:05.678901+09"),
    ("interval", "-1 year 2 mons -3 days 04:05:06.7"),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("json", "{\"b\": 1,  \"a\": [null]}"),
    ("jsonb", "{\"b\": 1.50, \"a\": \"\\u0041\"}"),
    ("jsonpath", "$.a[*] ? (@ > 1)"),
    ("xml", "<a b=\"1\">x</a>"),
    ("bit(5)", "10101"),
    ("varbit", "1"),
    ("inet", "10.0.0.1/8"),
    ("cidr", "2001:db8::/32"),
    ("macaddr", "08:00:2b:01:02:03"),
    ("macaddr8", "08:00:2b:01:02:03:04:05"),
    ("point", "(1.5,-2)"),
    ("lseg", "[(0,0),(1,1.25)]"),
    ("path", "((0,0),(1,1),(2,0))"),
    ("box", "(1,1),(0,0)"),
    ("polygon", "((0,0),(1,1),(2,0))"),
    ("line", "{1,-1,0}"),
    ("circle", "<(1,2),3>"),
    ("tsvector", "'fat':2A 'it''s':1"),
    ("tsquery", "'a' & !'b':*"),
    ("pg_lsn", "16/B374D848"),
    ("txid_snapshot", "10:20:10,14"),
    ("pg_snapshot", "10:20:10,14"),
    ("xid", "7"),
    ("xid8", "18446744073709551615"),
    ("cid", "8"),
    ("tid", "(1,2)"),
    ("refcursor", "a cursor"),
    ("int4range", "[1,5)"),
    ("int8range", "empty"),
    ("numrange", "(1.10,)"),
    ("tsrange", "[2026-01-01 00:00:00,infinity)"),
    ("tstzrange", "(,\"2026-01-01 00:00:00+00\"]"),
    ("daterange", "[2026-01-01,2026-01-05)"),
    ("int4multirange", "{[1,3),[5,7)}"),
    ("nummultirange", "{}"),
    ("regclass", "pg_catalog.pg_class"),
    ("regtype", "integer"),
    ("regproc", "pg_catalog.now"),
    ("regprocedure", "pg_catalog.abs(integer)"),
    ("regoperator", "pg_catalog.+(integer,integer)"),
    ("regnamespace", "pg_catalog"),
    ("regrole", "pg_monitor"),
    ("regcollation", "pg_catalog.\"C\""),
    ("regconfig", "pg_catalog.english"),
    ("regdictionary", "pg_catalog.simple"),
    ("aclitem", "pg_monitor=r/pg_monitor"),
    ("int4[]", "{{1,NULL},{-3,4}}"),
    ("text[]", "[0:2]={\"a,\\\"b\",NULL,\"NULL\"}"),
    ("timestamptz[]", "{-infinity,\"2026-01-01 00:00:00+00\"}"),
    ("bytea[]", "{\"\\\\x00\"}"),
];

/// Types of the shop's own, and what hangs on tables.
const OF_THE_SHOP: &str = "CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy'); COMMENT ON TYPE mood IS 'how';
    CREATE DOMAIN positive AS int DEFAULT 7 CONSTRAINT above CHECK (VALUE > 0);
    CREATE TYPE grade AS ENUM ('good', 'bad'); CREATE DOMAIN passed AS grade CONSTRAINT good CHECK (VALUE <> 'bad');
    CREATE TYPE place AS (street text, mood mood, odd numeric[]);
    CREATE FUNCTION doubled(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
    CREATE TABLE regions (id int PRIMARY KEY, name text);
    CREATE TABLE \"Odd \"\"Things\" (id int GENERATED ALWAYS AS IDENTITY (START WITH 5 INCREMENT BY 5) PRIMARY KEY,
        mood mood NOT NULL DEFAULT 'sad', moods mood[], amount positive, amounts positive[], grades passed[] DEFAULT '{good}', at place, ats place[], region int REFERENCES regions,
        twice int GENERATED ALWAYS AS (doubled(amount)) STORED, large text, note varchar(20) COLLATE \"C\" DEFAULT 'none' UNIQUE,
        CONSTRAINT \"no \"\"one\" CHECK (note <> 'one'), EXCLUDE USING gist (int4range(id, id + 1) WITH &&));
    CREATE SEQUENCE ticket_numbers START WITH 100; CREATE TABLE tickets (id bigint DEFAULT nextval('ticket_numbers') PRIMARY KEY, thing int
        REFERENCES \"Odd \"\"Things\" ON DELETE CASCADE, seen timestamptz) WITH (fillfactor = 70); ALTER SEQUENCE ticket_numbers OWNED BY tickets.id;
    CREATE INDEX \"odd ON ONLY index\" ON moves ((amount + 1)) WHERE amount > 3; CREATE INDEX ON tickets (thing DESC NULLS LAST) INCLUDE (seen);
    CREATE STATISTICS both_ways (dependencies) ON thing, seen FROM tickets; COMMENT ON TABLE tickets IS 'it''s \"odd\"';
    COMMENT ON COLUMN tickets.seen IS 'when'; ALTER TABLE tickets ALTER COLUMN thing SET STATISTICS 500;
    CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.seen := coalesce(NEW.seen, now()); RETURN NEW; END';
    CREATE TRIGGER stamp BEFORE INSERT ON tickets FOR EACH ROW EXECUTE FUNCTION stamp();
    INSERT INTO regions VALUES (1, 'north');
    INSERT INTO \"Odd \"\"Things\" (mood, moods, amount, amounts, at, ats, region, large, note)
        SELECT 'happy', '{sad,NULL,\"it''s ok\"}', i, ARRAY[i, i + 1], ROW('a,\"b', 'sad'::mood, '{1.50,NULL}'::numeric[])::place, ARRAY[ROW(NULL, NULL, NULL)::place], 1,
            CASE WHEN i = 3 THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 60000) n) END, 'n' || i FROM generate_series(1, 9) i;
    INSERT INTO tickets (thing) SELECT 5 * (1 + i % 9) FROM generate_series(1, 30) i;
    INSERT INTO tickets (id) VALUES (2000); CREATE SEQUENCE down INCREMENT BY -1; CREATE TABLE lows (id int DEFAULT nextval('down') PRIMARY KEY);
    INSERT INTO lows VALUES (-40), (7); INSERT INTO lows DEFAULT VALUES;
    GRANT SELECT ON regions, kinds, \"Odd \"\"Things\", tickets, lows TO shop_read;";

/// Functions are code, so nobody copies them.
const DOUBLED: &str = "CREATE FUNCTION doubled(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2'";

fn all_types() -> (String, String) {
    let columns: Vec<String> = BUILT_IN.iter().enumerate().map(|(n, (of, _))| format!("c{n} {of}")).collect();
    let values: Vec<String> =
        BUILT_IN.iter().map(|(_, value)| format!("'{}'", value.replace('\'', "''"))).collect();
    let nulls = vec!["NULL"; BUILT_IN.len()].join(", ");
    let kinds = format!(
        "CREATE TABLE kinds (id int PRIMARY KEY, {}); INSERT INTO kinds VALUES (1, {}), (2, {nulls})",
        columns.join(", "),
        values.join(", ")
    );
    let tables = TABLES.replacen(
        "moves: {} }",
        "moves: {}, kinds: {}, '\"Odd \"\"Things\"': {}, tickets: {}, lows: {} }",
        1,
    );
    (tables, format!("{SETUP}; SET standard_conforming_strings = on; {kinds}; {OF_THE_SHOP} ANALYZE"))
}

/// Every row of the tables, and whatever the catalogs say of them that a restore brings back: in words that they stand in the schema
/// public, whichever `schema` it is.
async fn fingerprint(client: &Client, schema: &str) -> BTreeMap<String, String> {
    let settings = format!(
        "SET search_path = pg_catalog, {schema}, public; SET timezone = 'UTC'; SET extra_float_digits = 3"
    );
    client.batch_execute(&settings).await.unwrap();
    let mut found = BTreeMap::new();
    for table in ["accounts", "moves", "moves_1", "moves_2", "kinds", "\"Odd \"\"Things\"", "tickets"] {
        let name = format!("{schema}.{table}");
        let rows = format!("SELECT coalesce(string_agg(t::text, E'\n' ORDER BY t::text), '') FROM {name} t");
        found.insert(format!("rows of {table}"), client.query_one(&rows, &[]).await.unwrap().get(0));
        let shape = "SELECT concat_ws(E'\n', \
            (SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attcollation::regcollation, \
                (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum), col_description(attrelid, attnum)), E'\n' ORDER BY attname) \
             FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped), \
            (SELECT string_agg(concat_ws(' ', conname, pg_get_constraintdef(oid)), E'\n' ORDER BY conname) FROM pg_constraint \
             WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u', 'c', 'x', 'f')), \
            (SELECT string_agg(pg_get_indexdef(indexrelid), E'\n' ORDER BY pg_get_indexdef(indexrelid)) FROM pg_index WHERE indrelid = $1::text::regclass), \
            (SELECT string_agg(pg_get_statisticsobjdef(oid), E'\n') FROM pg_statistic_ext WHERE stxrelid = $1::text::regclass), \
            (SELECT string_agg(pg_get_triggerdef(oid), E'\n') FROM pg_trigger WHERE tgrelid = $1::text::regclass AND NOT tgisinternal \
                AND tgfoid NOT IN (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'strangler')), \
            (SELECT concat_ws(' ', relkind, relreplident, reloptions, pg_get_expr(relpartbound, oid), obj_description(oid)) \
             FROM pg_class WHERE oid = $1::text::regclass))";
        let shape: String = client.query_one(shape, &[&name]).await.unwrap().get(0);
        found.insert(format!("shape of {table}"), shape.replace(&format!("{schema}."), "public."));
    }
    let sequences = "SELECT string_agg(concat_ws(' ', sequencename, data_type, start_value, increment_by, last_value), E'\n' ORDER BY sequencename) \
        FROM pg_sequences WHERE schemaname IN ('public', $1)";
    found.insert("sequences".to_owned(), client.query_one(sequences, &[&schema]).await.unwrap().get(0));
    found
}

pub(super) fn archive(split: &Split, to: &Path, arguments: &[&str]) -> Ended {
    split.run("retire", &[&["--stage", "archive", "--to", to.to_str().unwrap()], arguments].concat())
}

/// Takes the stages before.
pub(super) fn away(split: &Split) {
    take(split);
    move_away(split);
}

/// Archives as it is shown.
pub(super) fn keep(split: &Split, to: &Path) -> Ended {
    let done = archive(split, to, &["--confirm", &token(&archive(split, to, &[]))]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    done
}

/// A database on the monolith's server, which has none of the tables.
pub(super) async fn other_database(split: &mut Split, name: &str) -> Client {
    create_database(&split.pair.monolith, name).await;
    let url = split.pair.monolith.url(name);
    split.lead("ELSEWHERE", &url);
    connect(&url).await
}

pub(super) fn restore(split: &Split, from: &Path, arguments: &[&str]) -> Ended {
    let words = ["restore", "--from", from.to_str().unwrap(), "--to", "${ELSEWHERE}"];
    Ended::of(split.command(&[&words, arguments].concat()).output().unwrap())
}

pub(super) fn manifest(at: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(at.join("manifest.json")).unwrap()).unwrap()
}

fn archived_as_status_says(split: &Split) -> serde_json::Value {
    let status = split.run("status", &["--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    document["slices"][0]["retirement"]["archive"].clone()
}

/// What docs/archive.md tells those to do who have the files and not the program.
async fn by_hand(split: &mut Split, at: &Path) -> Client {
    let client = other_database(split, "by_hand").await;
    let text = |file: &str| std::fs::read_to_string(at.join(file)).unwrap();
    client.batch_execute(&format!("{DOUBLED}; {}", text("before.sql"))).await.unwrap();
    for relation in manifest(at)["relations"].as_array().unwrap() {
        let quoted =
            |name: &serde_json::Value| format!("\"{}\"", name.as_str().unwrap().replace('"', "\"\""));
        let columns: Vec<String> = relation["columns"].as_array().unwrap().iter().map(quoted).collect();
        let name = &relation["name"];
        let copy = format!(
            "COPY {}.{} ({}) FROM STDIN",
            quoted(&name["schema"]),
            quoted(&name["name"]),
            columns.join(", ")
        );
        for part in relation["parts"].as_array().unwrap() {
            let file = std::fs::read(at.join(part["file"].as_str().unwrap())).unwrap();
            let mut sink = pin!(client.copy_in::<_, bytes::Bytes>(&copy).await.unwrap());
            sink.send(zstd::decode_all(&file[..]).unwrap().into()).await.unwrap();
            sink.finish().await.unwrap();
        }
    }
    client.batch_execute(&text("after.sql")).await.unwrap();
    client
}

/// What was written down is the same everywhere; returns the manifest's digest.
fn known(split: &Split, at: &Path, done: &Ended) -> String {
    let status = archived_as_status_says(split);
    assert_eq!(status["place"], at.to_str().unwrap(), "{status}");
    let digest = status["manifest_sha256"].as_str().unwrap();
    assert!(done.stderr.contains(digest), "{}", done.page());
    let told = entries(split, "retire");
    let step = told.last().unwrap()["body"]["taken"][0].clone();
    assert!(step["action"].as_str().unwrap().contains(digest), "{told:#?}");
    assert_eq!(step["object"], at.to_str().unwrap());
    let again = archive(split, at, &[]);
    assert!(again.exit == Some(0) && again.stderr.contains("are archived before"), "{}", again.page());
    digest.to_owned()
}

/// Where the old tables still are, they come back by themselves.
fn not_beside_the_old_ones(split: &Split, at: &Path) {
    let words = ["restore", "--from", at.to_str().unwrap(), "--to", "${ADMIN}"];
    let into_itself = Ended::of(split.command(&words).output().unwrap());
    refused(&into_itself, &["restore-taken"]);
    let said = into_itself.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("unretire PLAN --slice one brings it back"), "{}", into_itself.page());
}

/// `doctor` names an archive, and one on which nothing rests any more.
async fn listed_by_doctor(split: &Split, monolith: &Client) {
    let seen = || {
        let report = split.run("doctor", &["--format", "json"]);
        let document: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
        let objects = document["databases"][0]["objects"].as_array().unwrap().clone();
        objects.into_iter().find(|object| object["kind"] == "archive").unwrap()
    };
    let stands = seen();
    assert!(stands["problem"].is_null() && stands["name"] == "one", "{stands:#}");
    monolith.batch_execute("UPDATE strangler.archive SET epoch = epoch - 1").await.unwrap();
    assert_eq!(seen()["problem"]["code"], "archive-outdated");
    monolith.batch_execute("UPDATE strangler.archive SET epoch = epoch + 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_value_and_table_comes_back_as_it_was() {
    let (tables, setup) = all_types();
    let prepared =
        format!("GRANT CREATE, USAGE ON SCHEMA public TO orders_deploy WITH GRANT OPTION; {DOUBLED}");
    let (mut split, monolith, _service, mirror) = ripe_of(&tables, (&setup, &prepared)).await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("archive");
    refused(&archive(&split, &at, &[]), &["stage-before"]);
    take(&split);
    refused(&archive(&split, &at, &[]), &["stage-before"]);
    let planned = split.run("provision", &["--dry-run"]);
    move_away(&split);
    let moved = split.run("provision", &["--dry-run"]);
    assert_eq!((moved.exit, moved.stdout), (Some(0), planned.stdout), "provision knows them by their names");
    split.provision();
    let preview = archive(&split, &at, &[]);
    assert!(preview.stdout.contains("moves_1: about ") && !at.exists(), "{}", preview.page());
    let done = keep(&split, &at);
    let said = manifest(&at);
    let applied = "SELECT applied_lsn::text FROM strangler.stream WHERE dir = 'reverse'";
    let applied: String = monolith.query_one(applied, &[]).await.unwrap().get(0);
    let position = |text: &str| text.parse::<Lsn>().unwrap();
    let archived = position(said["of"]["reverse_lsn"].as_str().unwrap());
    assert!(archived > position("0/0") && archived <= position(&applied), "{archived} {applied}");
    let digest = known(&split, &at, &done);
    listed_by_doctor(&split, &monolith).await;
    not_beside_the_old_ones(&split, &at);
    let elsewhere = other_database(&mut split, "elsewhere").await;
    let lacking = restore(&split, &at, &[]);
    refused(&lacking, &["restore-routine"]);
    elsewhere.batch_execute(DOUBLED).await.unwrap();
    // One that no column owns is there and has gone past where it stood, and not past what the column has.
    let gone_on = "CREATE SEQUENCE down INCREMENT BY -1; SELECT setval('down', -10)";
    elsewhere.batch_execute(gone_on).await.unwrap();
    let restored = restore(&split, &at, &["--digest", &digest]);
    assert_eq!(restored.exit, Some(0), "{}", restored.page());
    for left in
        ["trigger stamp on tickets: function public.stamp() does not exist", "foreign key", "owner tickets"]
    {
        assert!(restored.stderr.contains(&format!("not made: {left}")), "{left}: {}", restored.page());
    }
    for file in ["manifest.json", "before.sql", "after.sql", "optional.sql", "left.sql"] {
        let text = std::fs::read_to_string(at.join(file)).unwrap();
        assert!(!text.contains("strangler_quarantine"), "{file} says where the tables stood: {text}");
    }
    let left = std::fs::read_to_string(at.join("left.sql")).unwrap();
    assert!(left.contains("REFERENCES public.regions(id)"), "the key that arm has cut: {left}");
    let stands = place(&monolith, "accounts").await;
    let (mut before, after) =
        (fingerprint(&monolith, &stands).await, fingerprint(&elsewhere, "public").await);
    let trigger =
        "\nCREATE TRIGGER stamp BEFORE INSERT ON public.tickets FOR EACH ROW EXECUTE FUNCTION stamp()";
    let shape = before.get_mut("shape of tickets").unwrap();
    *shape = shape.replace(trigger, "");
    // Not all of the numbers that are there were given out by the sequences: a service's come over the way back.
    let sequences = before.get_mut("sequences").unwrap();
    *sequences = sequences.replace("-1 -1 -1\n", "-1 -1 -40\n").replace("100 1 129", "100 1 2000");
    for (what, was) in &before {
        assert_eq!(after.get(what), Some(was), "{what}");
    }
    refused(&restore(&split, &at, &[]), &["restore-taken"]);
    let by_hand = by_hand(&mut split, &at).await;
    for (what, is) in
        fingerprint(&by_hand, "public").await.iter().filter(|(what, _)| what.starts_with("rows"))
    {
        assert_eq!(before.get(what), Some(is), "{what}, without the program");
    }
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_or_a_missing_file_is_found_and_nothing_is_made() {
    let (mut split, monolith, _service, mirror) = ripe().await;
    // A policy on the table itself goes with it, wherever that stands.
    monolith.batch_execute("CREATE POLICY own ON accounts USING (balance >= 0)").await.unwrap();
    away(&split);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("archive");
    keep(&split, &at);
    let elsewhere = other_database(&mut split, "elsewhere").await;
    let parts = manifest(&at)["relations"].as_array().unwrap().clone();
    let part = at.join(parts[0]["parts"][0]["file"].as_str().unwrap());
    let whole = std::fs::read(&part).unwrap();
    for place in [0, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[place] ^= 4;
        std::fs::write(&part, &flipped).unwrap();
        for ended in [restore(&split, &at, &[]), archive(&split, &at, &[])] {
            assert_eq!(ended.exit, Some(1), "{}", ended.page());
            assert!(ended.stderr.contains("error[archive-damaged]"), "{}", ended.page());
            assert!(ended.stderr.contains(part.to_str().unwrap()), "{}", ended.page());
        }
    }
    std::fs::remove_file(&part).unwrap();
    let gone = restore(&split, &at, &[]);
    assert!(gone.exit == Some(1) && gone.stderr.contains("is not there"), "{}", gone.page());
    std::fs::write(&part, &whole).unwrap();
    let another = restore(&split, &at, &["--digest", &"0".repeat(64)]);
    assert!(
        another.exit == Some(3) && another.stderr.contains("error[archive-another]"),
        "{}",
        another.page()
    );

    // A manifest that fits its files and says something else of the rows: the files are right, and the sum is not.
    let written = std::fs::read(at.join("manifest.json")).unwrap();
    let mut other = manifest(&at);
    other["relations"][0]["rows_digest"] = "0".repeat(64).into();
    std::fs::write(at.join("manifest.json"), serde_json::to_vec(&other).unwrap()).unwrap();
    let sum = restore(&split, &at, &[]);
    assert!(sum.exit == Some(1) && sum.stderr.contains("their digest is"), "{}", sum.page());
    // Definitions that nobody wrote, under the digest of the rows that are there: it is not taken for what is written down.
    std::fs::write(at.join("manifest.json"), &written).unwrap();
    let mut other = manifest(&at);
    let sql = other["definitions"][0]["sql"].as_str().unwrap().to_owned();
    other["definitions"][0]["sql"] = format!("{sql} ").into();
    std::fs::write(at.join("manifest.json"), serde_json::to_vec(&other).unwrap()).unwrap();
    let unlike = restore(&split, &at, &[]);
    assert!(
        unlike.exit == Some(1) && unlike.stderr.contains("has other definitions than"),
        "{}",
        unlike.page()
    );
    refused(&archive(&split, &at, &[]), &["archive-changed"]);
    std::fs::remove_file(at.join("manifest.json")).unwrap();
    let missing = restore(&split, &at, &[]);
    assert!(
        missing.exit == Some(3) && missing.stderr.contains("error[archive-missing]"),
        "{}",
        missing.page()
    );
    let made = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(elsewhere.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 0);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn a_full_disk_leaves_everything_as_it_was_and_the_same_command_goes_on() {
    let (split, monolith, _service, mirror) = ripe().await;
    away(&split);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("archive");
    let shown = token(&archive(&split, &at, &[]));
    killed(&split, "archive-begun", &at, &shown);
    // Whatever is written there meets a device that is full.
    std::fs::create_dir_all(at.join("data/0002_public.moves_1")).unwrap();
    symlink("/dev/full", at.join("data/0002_public.moves_1/00001.copy.zst.part")).unwrap();
    let ended = archive(&split, &at, &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(5), "{}", ended.page());
    assert!(ended.stderr.contains("error[archive-full]"), "{}", ended.page());
    assert!(
        ended.stderr.contains("0002_public.moves_1/00001.copy.zst") && ended.stderr.contains("No space left"),
        "{}",
        ended.page()
    );
    assert!(!at.join("manifest.json").exists());
    assert_eq!(archived_as_status_says(&split), serde_json::Value::Null);
    assert!(undo_that_status_names(&split).is_some());
    let stands = place(&monolith, "accounts").await;
    let counts =
        format!("SELECT (SELECT count(*) FROM {stands}.accounts) + (SELECT count(*) FROM {stands}.moves)");
    assert_eq!(monolith.query_one(&counts, &[]).await.unwrap().get::<_, i64>(0), 200);
    let done = archive(&split, &at, &["--confirm", &shown]);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    mirror.stop();
}

pub(super) fn killed(split: &Split, point: &str, at: &Path, shown: &str) {
    let words =
        ["retire", "plan.yaml", "--stage", "archive", "--to", at.to_str().unwrap(), "--confirm", shown];
    let ended = Ended::of(split.command(&words).env("STRANGLER_FAILPOINT", point).output().unwrap());
    assert_eq!(ended.exit, None, "{point} was not reached: {}", ended.page());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn an_archive_that_is_killed_at_any_step_is_whole_after_the_same_command_and_told_once() {
    let (mut split, monolith, _service, mirror) = ripe().await;
    let folder = tempfile::tempdir().unwrap();
    let points = every_third(failpoint::ARCHIVE);
    for point in &points {
        away(&split);
        let at = folder.path().join(point);
        let shown = token(&archive(&split, &at, &[]));
        killed(&split, point, &at, &shown);
        let noted = archived_as_status_says(&split) != serde_json::Value::Null;
        assert_eq!(noted, *point == "archive-committed", "{point}");
        let again = archive(&split, &at, &["--confirm", &shown]);
        assert_eq!(again.exit, Some(0), "{point}: {}", again.page());
        let undo = undo_that_status_names(&split).unwrap();
        let words: Vec<&str> = undo.split(' ').skip(1).collect();
        let back = Ended::of(split.command(&words).output().unwrap());
        assert_eq!(back.exit, Some(0), "{point}: {}", back.page());
        assert!(back.stderr.contains(&format!("stays at {}", at.display())), "{}", back.page());
        assert_eq!(archived_as_status_says(&split), serde_json::Value::Null);
    }
    let entries = entries(&split, "retire");
    let taken = entries.iter().flat_map(|one| one["body"]["taken"].as_array().unwrap());
    let told = taken.filter(|step| step["action"].as_str().unwrap().starts_with("archive ")).count();
    assert_eq!(told, points.len(), "each is told once: {entries:#?}");
    places(&split, &monolith, folder.path()).await;

    let at = folder.path().join("archive-committed");
    for point in failpoint::RESTORE {
        let elsewhere = other_database(&mut split, point).await;
        let words = ["restore", "--from", at.to_str().unwrap(), "--to", "${ELSEWHERE}"];
        let ended = Ended::of(split.command(&words).env("STRANGLER_FAILPOINT", point).output().unwrap());
        assert_eq!(ended.exit, None, "{point}: {}", ended.page());
        let there = "SELECT to_regclass('public.accounts') IS NOT NULL";
        until("the database has its end", SOON, async || {
            let others = "SELECT FROM pg_stat_activity WHERE application_name = 'strangler restore'";
            monolith.query(others, &[]).await.unwrap().is_empty().then_some(())
        })
        .await;
        let committed: bool = elsewhere.query_one(there, &[]).await.unwrap().get(0);
        assert_eq!(committed, *point == "restore-committed");
    }
    mirror.stop();
}

/// As a clock says that was set back.
const LONG_AGO: &str = "UPDATE strangler.retirement SET at = at - interval '1 day'";

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_tables_that_came_back_meanwhile_is_not_written_down_whatever_the_clocks_say() {
    let (split, monolith, _service, mirror) = ripe().await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("archive");
    away(&split);
    let shown = token(&archive(&split, &at, &[]));
    let words =
        ["retire", "plan.yaml", "--stage", "archive", "--to", at.to_str().unwrap(), "--confirm", &shown];
    let mut command = split.command(&words);
    command.env("STRANGLER_FREEZE", "archive-concluded");
    let mut frozen = split.start_command(command);
    assert!(frozen.stands_still());
    let back = split.run("unretire", &[]);
    assert_eq!(back.exit, Some(0), "{}", back.page());
    away(&split);
    monolith.batch_execute(LONG_AGO).await.unwrap();
    frozen.signal(rustix::process::Signal::CONT);
    let ended = frozen.ended();
    assert!(ended.exit == Some(3) && ended.stderr.contains("error[retire-changed]"), "{}", ended.page());
    assert_eq!(archived_as_status_says(&split), serde_json::Value::Null);
    mirror.stop();
}

/// What is at a place is never written over, an archive of an earlier retirement neither.
async fn places(split: &Split, monolith: &Client, folder: &Path) {
    away(split);
    monolith.batch_execute(LONG_AGO).await.unwrap();
    let earlier = archive(split, &folder.join("archive-committed"), &[]);
    refused(&earlier, &["place-taken"]);
    std::fs::create_dir(folder.join("full")).unwrap();
    std::fs::write(folder.join("full/letter.txt"), "dear").unwrap();
    refused(&archive(split, &folder.join("full"), &[]), &["place-taken"]);
    let other = archive(split, &folder.join("new"), &["--confirm", "00000000"]);
    assert!(other.exit == Some(3) && other.stderr.contains("error[retire-changed]"), "{}", other.page());
    let misplaced = revoke(split, &["--to", "x"]);
    assert_eq!(misplaced.exit, Some(2), "{}", misplaced.page());
    for nowhere in ["ftp://host/a", "s3://"] {
        let ended = archive(split, Path::new(nowhere), &[]);
        assert!(ended.exit == Some(2) && ended.stderr.contains("error[archive-place]"), "{}", ended.page());
    }
}
