//! The split that corruptions are planted in, and the writers that go on all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::support::cluster::connect;
use crate::support::split::{Mirror, Split};
use crate::support::wait::until;

/// Columns of `things` in the service, without key and filter.
pub const COLUMNS: &str = "num, big, price, ratio, ok, label_text, title, code, pad, day, at, seen, span, data, uid, \
     doc, doc2, raw, addr, nums, tags, mood, note";

const TABLES: &str = "{ things: { where: { region: EU }, columns: { label: label_text, gone: { drop: true } } }, \
     words: {}, pairs: {}, codes: {}, sums: {}, days: {} }";

/// The key of row `i` of `codes`: scattered, as random ones are.
const CODE_SQL: &str = "(lpad(to_hex(i * 2654435761 % 4294967296), 8, '0') || '-0000-4000-8000-' \
     || lpad(to_hex(i), 12, '0'))::uuid";

/// The same.
pub fn code(i: i64) -> String {
    format!("{:08x}-0000-4000-8000-{i:012x}", i * 2_654_435_761 % 4_294_967_296)
}

/// A million rows take their time.
const COPIED: Duration = Duration::from_secs(600);

/// How many rows there are of each table, and which of them are left alone by the writers: the first half.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub things: i64,
    pub words: i64,
    pub pairs: i64,
    pub codes: i64,
}

impl Sizes {
    /// 50,000 rows, or a million.
    pub fn of(soak: bool) -> Self {
        let times = if soak { 20 } else { 1 };
        Self { things: 30_000 * times, words: 10_000 * times, pairs: 5_000 * times, codes: 5_000 * times }
    }
}

fn schema(sizes: Sizes) -> String {
    let Sizes { things, words, pairs, codes } = sizes;
    let code = CODE_SQL;
    format!(
        r#"
CREATE TYPE mood AS ENUM ('sad', 'fine');
CREATE TABLE things (id bigint PRIMARY KEY, region text NOT NULL, num int, big bigint, price numeric, ratio float8,
    ok bool, label text, title varchar(40), code char(8), pad bpchar, day date, at timestamp, seen timestamptz,
    span interval, data bytea, uid uuid, doc jsonb, doc2 jsonb, raw json, addr inet, nums int[], tags text[],
    mood mood, note text, gone text);
ALTER TABLE things REPLICA IDENTITY FULL;
INSERT INTO things SELECT i, CASE WHEN i % 6 = 0 THEN 'US' ELSE 'EU' END, i, 1, 1.0, 0, true, 'label ' || i,
    'Ångström', 'c', 'c', '2026-01-01', '2026-01-01 12:00', '2026-01-01 12:00Z', '1 day', '\x6162', md5(i::text)::uuid,
    '{{"a": [1, 2]}}', '1', '{{"a": 1}}', '10.0.0.1', '{{1,2,3}}', '{{a,b}}', 'fine', '', 'gone'
FROM generate_series(1, {things}) i;
CREATE TABLE words (word text COLLATE "en-x-icu" PRIMARY KEY, value int);
INSERT INTO words SELECT CASE i % 3 WHEN 0 THEN 'straße ' ELSE 'word ' END || i, i FROM generate_series(1, {words}) i;
CREATE TABLE pairs (a int, b text, value text, PRIMARY KEY (a, b));
INSERT INTO pairs SELECT i / 10, 'b' || i % 10, 'value ' || i FROM generate_series(1, {pairs}) i;
CREATE TABLE codes (code uuid PRIMARY KEY, value text);
INSERT INTO codes SELECT {code}, 'value ' || i FROM generate_series(1, {codes}) i;
CREATE TABLE sums (sum numeric PRIMARY KEY, value text);
INSERT INTO sums SELECT i, 'value ' || i FROM generate_series(1, 500) i;
CREATE TABLE days (day int PRIMARY KEY, value text);
INSERT INTO days SELECT i, 'day ' || i FROM generate_series(1, 200) i;
ANALYZE;"#
    )
}

/// The split with its running mirror.
pub struct Stage {
    pub split: Split,
    pub service: Client,
    _mirror: Mirror,
}

impl Stage {
    /// Provisioned, and everything copied.
    pub async fn open(sizes: Sizes) -> Self {
        let (split, monolith, service) = Split::launch(TABLES, &schema(sizes)).await;
        split.provision();
        let mirror = split.mirror_as(None, &[]);
        let live = "SELECT coalesce(bool_and(state = 'live'), false) FROM strangler.mirror_table";
        until("everything is copied", COPIED, async || {
            service.query_one(live, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
        mirror.caught_up(&monolith, &service).await;
        Self { split, service, _mirror: mirror }
    }
}

/// Writes to the service past the gate and past every trigger, as nobody should.
pub async fn corrupt(service: &Client, sql: &str) {
    let sql = format!(
        "SET session_replication_role = replica; SET SESSION AUTHORIZATION strangler_apply; {sql}; \
         RESET SESSION AUTHORIZATION; RESET session_replication_role"
    );
    service.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Sessions of the application that write without end.
pub struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    done: Arc<Vec<AtomicU64>>,
}

impl Writers {
    /// Eight of them; `script` makes each next statement.
    pub async fn start(
        url: &str,
        script: impl Fn(&mut fastrand::Rng) -> String + Clone + Send + 'static,
    ) -> Self {
        let done: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..8_usize {
            let session = connect(url).await;
            session.batch_execute("SET deadlock_timeout = '20ms'").await.unwrap();
            let (stop, done, script) = (Arc::clone(&stop), Arc::clone(&done), script.clone());
            tasks.spawn(async move {
                let mut random = fastrand::Rng::with_seed(number as u64);
                // A mirror that can't keep up would only show that it can't.
                let mut pace = interval(Duration::from_millis(25));
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let sql = script(&mut random);
                    match session.batch_execute(&sql).await {
                        Ok(()) => _ = done[number].fetch_add(1, Ordering::Relaxed),
                        Err(error) => forgive(&session, &error, &sql).await,
                    }
                }
            });
        }
        Self { tasks, stop, done }
    }

    /// Statements of each writer so far.
    pub fn done(&self) -> Vec<u64> {
        self.done.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// # Panics
    /// When one of them has not got on since then, or has failed.
    pub fn assert_got_on(&self, since: &[u64]) {
        let now = self.done();
        assert!(
            since.iter().zip(&now).all(|(then, now)| then < now),
            "a writer stands still: {since:?}, {now:?}"
        );
    }

    /// Lets them end; returns how many statements they made.
    pub async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.done().iter().sum()
    }
}

/// A unique violation, a deadlock and a lock that could not be had are the application's own.
async fn forgive(session: &Client, error: &tokio_postgres::Error, sql: &str) {
    let code = error.as_db_error().map(|error| error.code().code().to_owned());
    assert!(matches!(code.as_deref(), Some("23505" | "40P01" | "55P03")), "{sql}: {error:?}");
    session.batch_execute("ROLLBACK").await.unwrap();
}

/// What the application does in the half of the rows that nothing is planted in.
pub fn writes(sizes: Sizes) -> impl Fn(&mut fastrand::Rng) -> String + Clone + Send + 'static {
    move |random| {
        let half = |random: &mut fastrand::Rng, rows: i64| random.i64(rows / 2 + 100..=rows);
        let (id, other) = (half(random, sizes.things), half(random, sizes.things));
        let (word, pair, code) =
            (half(random, sizes.words), half(random, sizes.pairs), half(random, sizes.codes));
        match random.u8(0..12) {
            0..3 => format!(
                "UPDATE things SET num = num + 1, price = price + 0.01, label = label || '.', seen = now(), \
                 doc = '[{id}]', nums = nums || {other}::int, mood = 'sad' WHERE id = {id}"
            ),
            3 => format!(
                "UPDATE things SET region = CASE region WHEN 'EU' THEN 'US' ELSE 'EU' END WHERE id = {id}"
            ),
            4 => format!("DELETE FROM things WHERE id = {id}"),
            5 => format!(
                "INSERT INTO things (id, region, num, label, span) VALUES ({id}, 'EU', {other}, 'new', '1 hour') \
                 ON CONFLICT (id) DO UPDATE SET note = 'again', ratio = random()"
            ),
            6 => format!(
                "UPDATE things SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM things WHERE id = {other})"
            ),
            7 => format!("UPDATE words SET value = value + 1 WHERE value = {word}"),
            8 => format!(
                "BEGIN; DELETE FROM words WHERE word = 'word {word}'; \
                 INSERT INTO words VALUES ('word {word}', {word}), ('Word {word}', 0) ON CONFLICT DO NOTHING; COMMIT"
            ),
            9 => format!("UPDATE pairs SET value = value || '.' WHERE a = {} AND b = 'b3'", pair / 10),
            10 => format!("DELETE FROM pairs WHERE a = {} AND b = 'b{}'", pair / 10, pair % 10),
            _ => format!("UPDATE codes SET value = value || '.' WHERE code = '{}'", self::code(code)),
        }
    }
}
