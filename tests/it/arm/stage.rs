//! A mirrored split that is ready to be armed: tables that move in two slices, tables that stay, and keys between them.

use strangler::cluster::{Binaries, Options};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::binary::Ended;
use crate::support::cluster::{Pair, launch_with};
use crate::support::prepared::prepared;
use crate::support::split::Split;

const SETUP: &str = r#"
CREATE ROLE app LOGIN;
CREATE TABLE "Customers" (id int PRIMARY KEY);
CREATE TABLE products (id int PRIMARY KEY, name text);
CREATE TABLE "Orders" (id int PRIMARY KEY, customer int CONSTRAINT "FK Customer" REFERENCES "Customers" ON DELETE CASCADE,
    note text, hidden text);
CREATE TABLE lines (id int PRIMARY KEY, "order" int CONSTRAINT fk_order REFERENCES "Orders" ON DELETE CASCADE,
    product int CONSTRAINT fk_product REFERENCES products MATCH FULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
COMMENT ON CONSTRAINT fk_product ON lines IS 'it''s across the cut';
CREATE TABLE moves (id int, at date, product int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE moves_2024 PARTITION OF moves FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE moves_rest PARTITION OF moves DEFAULT;
CREATE TABLE audit (id int PRIMARY KEY, "order" int, move int, at date,
    CONSTRAINT fk_audit_move FOREIGN KEY (move, at) REFERENCES moves);
ALTER TABLE audit ADD CONSTRAINT fk_audit_order FOREIGN KEY ("order") REFERENCES "Orders" NOT VALID;
ALTER TABLE moves ADD CONSTRAINT fk_move_product FOREIGN KEY (product) REFERENCES products;
INSERT INTO "Customers" SELECT generate_series(1, 3);
INSERT INTO products SELECT i, 'p' || i FROM generate_series(1, 3) i;
INSERT INTO "Orders" SELECT i, i, 'note' FROM generate_series(1, 3) i;
INSERT INTO lines SELECT i, i, i FROM generate_series(1, 3) i;
INSERT INTO moves SELECT i, date '2024-06-01' + i * 150, i FROM generate_series(1, 3) i;
INSERT INTO audit SELECT i, i, i, date '2024-06-01' + i * 150 FROM generate_series(1, 3) i;
GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
"#;

const PLAN: &str = r#"
version: 1
plan: split
monolith: { url: "${MONOLITH}" }
services: { service: { url: "${SERVICE}" } }
slices:
  one:
    service: service
    tables:
      Orders: { to: orders, columns: { hidden: { drop: true } } }
      lines: {}
      moves: {}
  two:
    service: service
    tables: { products: {} }
"#;

/// The split with sessions of superusers on both sides.
pub struct Stage {
    pub split: Split,
    pub monolith: Client,
    pub service: Client,
}

impl Stage {
    /// Everything is mirrored and live; no mirror runs any more.
    pub async fn mirrored() -> Self {
        let pair = prepared("mirrored", async || {
            Self::with(Options::default(), Options::default()).await.split.pair
        });
        Self::on_prepared(pair.await).await
    }

    async fn on_prepared(pair: Pair) -> Self {
        let (split, monolith, service) = Split::between(pair, PLAN, "").await;
        Self { split, monolith, service }
    }

    /// As [`Self::mirrored`], on servers with settings of the test's own.
    pub async fn with(monolith: Options, service: Options) -> Self {
        let pair = Pair::of(launch_with(monolith), launch_with(service), "").await;
        let (split, monolith, service) = Split::between(pair, PLAN, SETUP).await;
        split.provision();
        let mirror = split.mirror(None);
        mirror.caught_up(&monolith, &service).await;
        mirror.stop();
        Self { split, monolith, service }
    }

    /// As [`Self::mirrored`], on installations of the test's own.
    pub async fn on(monolith: &Binaries, service: &Binaries) -> Self {
        let on = |binaries: &Binaries| Options { binaries: Some(binaries.clone()), ..Options::default() };
        Self::with(on(monolith), on(service)).await
    }

    /// As [`Self::mirrored`], and armed.
    pub async fn armed() -> Self {
        let pair = prepared("armed", async || {
            let stage = Self::mirrored().await;
            stage.succeed("arm", &[]);
            stage.split.pair
        });
        Self::on_prepared(pair.await).await
    }

    pub fn run(&self, verb: &str, arguments: &[&str]) -> Ended {
        self.split.run(verb, arguments)
    }

    /// Runs a verb that must end with 0, and returns all that it said.
    pub fn succeed(&self, verb: &str, arguments: &[&str]) -> String {
        let ended = self.run(verb, arguments);
        assert_eq!(ended.exit, Some(0), "{verb}: {}", ended.page());
        ended.stdout + &ended.stderr
    }

    /// A session of the application on the monolith.
    pub async fn app(&self) -> Client {
        let url = strangler::cluster::Cluster::url_as(&self.split.pair.monolith, "app", "", Pair::MONOLITH);
        crate::support::cluster::connect(&url).await
    }

    /// Closes the monolith's gate as a flip does.
    pub async fn fence(&self) {
        self.monolith
            .batch_execute(
                "UPDATE strangler.gate_one SET state = 'FENCED', epoch = 2, cause = 'fence', owner = 'service'",
            )
            .await
            .unwrap();
    }

    /// Moves the authority over slice `one` to the service, as far as the gates know.
    pub async fn flip(&self) {
        self.fence().await;
        self.service
            .batch_execute(
                "UPDATE strangler.gate_one SET state = 'OPEN', epoch = 2, cause = 'open', owner = 'service'",
            )
            .await
            .unwrap();
    }

    /// Everything that arm and disarm change, on both sides, without what is drawn by lot.
    pub async fn fingerprint(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (name, client) in [("monolith", &self.monolith), ("service", &self.service)] {
            for sql in FINGERPRINT {
                all.extend(rows(client, sql).await.into_iter().map(|row| format!("{name} {row}")));
            }
        }
        all
    }

    /// Foreign keys of the monolith's tables.
    pub async fn keys(&self) -> Vec<String> {
        rows(&self.monolith, KEYS).await
    }
}

/// Those that were declared. VALIDATE does not come to what PostgreSQL makes for the partitions of a referenced table, so
/// those stay unproven for ever after NOT VALID; nothing looks at that.
const KEYS: &str = "SELECT 'key', conrelid::regclass, conname, convalidated, condeferrable, confrelid::regclass, \
    pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE contype = 'f' \
    AND connamespace = 'public'::regnamespace AND conparentid = 0 \
    ORDER BY conrelid::regclass::text, conname, confrelid::regclass::text";

const FINGERPRINT: &[&str] = &[
    KEYS,
    "SELECT 'trigger', tgrelid::regclass, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal \
     ORDER BY tgrelid::regclass::text, tgname",
    "SELECT 'published', p.pubname, p.pubviaroot, ARRAY(SELECT prrelid::regclass::text FROM pg_publication_rel r \
     WHERE r.prpubid = p.oid ORDER BY 1) FROM pg_publication p ORDER BY 2",
    "SELECT 'stream', slice, epoch, mode, state, regexp_replace(slot, '_[a-z]{6}$', ''), publication, \
     applied_lsn > '0/0' FROM strangler.stream WHERE dir = 'reverse' ORDER BY 2",
    "SELECT 'slot', regexp_replace(slot_name, '_[a-z]{6}$', ''), plugin, wal_status FROM pg_replication_slots \
     WHERE database = current_database() ORDER BY 2",
    "SELECT 'cut', slice, child_table, name, parent_table, definition, validated, comment FROM strangler.cut_key \
     WHERE restored_at IS NULL ORDER BY name",
    "SELECT 'function', proname, prosrc FROM pg_proc WHERE pronamespace = 'strangler'::regnamespace ORDER BY 2",
    "SELECT 'identity', oid::regclass, relreplident FROM pg_class WHERE relnamespace = 'public'::regnamespace \
     AND relkind IN ('r', 'p') ORDER BY oid::regclass::text",
];

/// The rows of a query as text, columns joined by bars.
pub async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let found = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message: SimpleQueryMessage| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let values: Vec<&str> = (0..row.len()).map(|index| row.get(index).unwrap_or_default()).collect();
        Some(values.join("|"))
    };
    found.into_iter().filter_map(row).collect()
}
