//! The retail monolith with few rows, an empty database for each of its services, and a calendar that every command goes by.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use strangler::cluster::Cluster;
use strangler::demo::{RETAIL_DATA_SQL, RETAIL_PLAN, RETAIL_SCHEMA_SQL};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::binary::{Ended, flat};
use crate::support::cluster::{Pair, connect, create_database};
use crate::support::split::Split;
use crate::support::wait::{SOON, until};

/// The slices of the plan that are split off, with their services, in the order in which they go. The others stay where they are: these
/// two refer to nothing of theirs.
pub const SLICES: [(&str, &str); 2] = [("ordering", "orders"), ("catalog", "products")];

/// The same as a command names them.
pub const NAMED: [&str; 4] = ["--slice", "ordering", "--slice", "catalog"];

/// Services of the plan.
const SERVICES: [&str; 6] = ["orders", "payments", "checkout", "carts", "inventory", "products"];

/// The tables that move.
pub const MOVED: [&str; 5] = ["Orders", "OrderLines", "Categories", "Products", "ProductImages"];

/// The tables that stay.
pub const STAYING: [&str; 11] = [
    "Customers",
    "Reviews",
    "AuditLog",
    "Payments",
    "PaymentAttempts",
    "InventoryItems",
    "StockMovements",
    "Carts",
    "CartLines",
    "CheckoutSagas",
    "CheckoutSteps",
];

/// Leaves a few hundred rows in the tables that move.
const FEW: &str = r#"SET session_replication_role = replica;
    DELETE FROM "ProductImages" WHERE "ProductId" > 600; DELETE FROM "InventoryItems" WHERE "ProductId" > 600;
    DELETE FROM "Products" WHERE "Id" > 600; DELETE FROM "OrderLines" WHERE "ProductId" > 600 OR "OrderId" > 900;
    DELETE FROM "StockMovements" WHERE "InventoryItemId" > 1200 OR "OrderId" > 900; DELETE FROM "Orders" WHERE "Id" > 900;
    DELETE FROM "CheckoutSagas" WHERE "OrderId" > 300; DELETE FROM "Carts" WHERE coalesce("CustomerId", 999) > 300;
    DELETE FROM "CheckoutSteps" WHERE "SagaId" NOT IN (SELECT "Id" FROM "CheckoutSagas");
    DELETE FROM "CartLines" WHERE "ProductId" > 600 OR "CartId" NOT IN (SELECT "Id" FROM "Carts");
    DELETE FROM "PaymentAttempts" WHERE "PaymentId" > 300; DELETE FROM "Payments" WHERE "Id" > 300;
    DELETE FROM "Reviews" WHERE "ProductId" > 600; RESET session_replication_role; ANALYZE"#;

/// The shop.
pub struct Shop {
    pub split: Split,
    pub monolith: Client,
    /// By the services' names.
    pub services: BTreeMap<&'static str, Client>,
    /// Holds the file that says how far the clock is moved.
    calendar: tempfile::TempDir,
    /// The same in PostgreSQL's words.
    moved: RefCell<String>,
}

impl Shop {
    /// Loaded, and with the plan as it is in `plans/`, but for a pause that a busy machine keeps.
    pub async fn open() -> Self {
        let plan = RETAIL_PLAN.replace("write_pause_budget: 500ms", "write_pause_budget: 2s");
        let (mut split, monolith, server) = Split::with_plan(&plan, "").await;
        for sql in [RETAIL_SCHEMA_SQL, RETAIL_DATA_SQL, FEW] {
            monolith.batch_execute(sql).await.unwrap();
        }
        mirror_role(&monolith, "LOGIN").await;
        mirror_role(&server, "LOGIN REPLICATION").await;
        let admin = split.pair.monolith_url();
        split.lead("MONOLITH_ADMIN_URL", &admin);
        split.lead("MONOLITH_READ_URL", &admin);
        let apply = split.pair.monolith.url_as("strangler_apply", "", Pair::MONOLITH);
        split.lead("MONOLITH_APPLY_URL", &apply);
        let mut services = BTreeMap::new();
        for service in SERVICES {
            create_database(&split.pair.service, service).await;
            let admin = split.pair.service.url(service);
            let apply = split.pair.service.url_as("strangler_apply", "", service);
            split.lead(&format!("{}_ADMIN_URL", service.to_uppercase()), &admin);
            split.lead(&format!("{}_APPLY_URL", service.to_uppercase()), &apply);
            services.insert(service, connect(&admin).await);
        }
        let calendar = tempfile::tempdir().unwrap();
        split.lead("STRANGLER_CLOCK_OFFSET", &format!("@{}", calendar.path().join("today").display()));
        let shop = Self { split, monolith, services, calendar, moved: RefCell::default() };
        shop.date(0, 0);
        shop
    }

    /// For every command, also one that runs, it is so many days and hours after the test began.
    pub fn date(&self, day: u32, hour: u32) {
        let [next, today] = ["next", "today"].map(|name| self.calendar.path().join(name));
        std::fs::write(&next, format!("+{day}d{hour}h")).unwrap();
        std::fs::rename(&next, &today).unwrap();
        self.moved.replace(format!("{day} days {hour} hours"));
    }

    /// The mirror has looked at every old table since the calendar was turned.
    pub async fn watched(&self) {
        let today = format!(
            "SELECT count(*) = {} AND bool_and(sampled_at > clock_timestamp() + interval '{}' - interval '20 minutes') \
             FROM strangler.table_use",
            MOVED.len(),
            self.moved.borrow()
        );
        until("the old tables are watched", SOON, async || {
            self.monolith.query_one(&today, &[]).await.unwrap().get::<_, Option<bool>>(0)?.then_some(())
        })
        .await;
    }

    /// The database of a slice's service.
    pub fn service_of(&self, slice: &str) -> &Client {
        let (_, service) = SLICES.iter().find(|(name, _)| *name == slice).unwrap();
        &self.services[service]
    }

    /// Runs a verb that has to end well.
    pub fn done(&self, verb: &str, arguments: &[&str]) -> Ended {
        let ended = self.split.run(verb, arguments);
        assert_eq!(ended.exit, Some(0), "{verb} {arguments:?}: {}", ended.page());
        ended
    }

    /// Runs a verb that has to be refused for these reasons and for none of the others; returns what it says.
    pub fn refused(&self, (verb, arguments): (&str, &[&str]), reasons: &[&str], others: &[&str]) -> String {
        let ended = self.split.run(verb, arguments);
        assert_eq!(ended.exit, Some(3), "{verb} {arguments:?}: {}", ended.page());
        let said = |code: &&&str| ended.stderr.contains(&format!("({code})"));
        let missing: Vec<_> = reasons.iter().filter(|code| !said(code)).collect();
        let wrong: Vec<_> = others.iter().filter(said).collect();
        assert!(missing.is_empty() && wrong.is_empty(), "{missing:?}, {wrong:?}: {}", ended.page());
        flat(&ended.stderr)
    }

    /// Takes a stage of a slice as it is shown.
    pub fn staged(&self, slice: &str, stage: &str, to: Option<&Path>) -> Ended {
        let to = to.map(|folder| folder.to_str().unwrap());
        let to = to.map_or(Vec::new(), |folder| vec!["--to", folder]);
        let shown = [&["--slice", slice, "--stage", stage], &to[..]].concat();
        let preview = self.done("retire", &shown);
        let (_, token) =
            preview.stderr.split_once("--confirm ").unwrap_or_else(|| panic!("{}", preview.page()));
        let token = token.split_whitespace().next().unwrap();
        self.done("retire", &[&shown[..], &["--confirm", token]].concat())
    }

    /// Somebody orders every 50 ms, wherever orders are taken.
    pub async fn till(&self) -> Till {
        let monolith = self.split.pair.monolith.url_as("retail_app", "", Pair::MONOLITH);
        let service = self.split.pair.service.url_as("order_user", "", "orders");
        let sides =
            [(connect(&monolith).await, r#""Orders""#), (connect(&service).await, r#"sales."Orders""#)];
        let (stop, road) = (CancellationToken::new(), Arc::<RwLock<()>>::default());
        let customers = tokio::spawn(serve(sides, stop.clone(), Arc::clone(&road)));
        Till { stop, road, customers }
    }

    /// What the service of orders has written by now is on the monolith.
    pub async fn orders_are_back(&self) {
        let orders = self.service_of("ordering");
        let row = orders.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        let position: String = row.get(0);
        let sql = "SELECT applied_lsn >= $1::text::pg_lsn FROM strangler.stream WHERE slice = 'ordering' AND dir = 'reverse'";
        until("the way back has brought every order", SOON, async || {
            self.monolith.query_one(sql, &[&position]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }
}

/// The role that writes mirrored rows.
async fn mirror_role(client: &Client, options: &str) {
    let version: String = client.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    let right = match version.as_str() < "150000" {
        true => "ALTER ROLE strangler_apply SET session_replication_role = replica",
        false => "GRANT SET ON PARAMETER session_replication_role TO strangler_apply",
    };
    let sql =
        format!("CREATE ROLE strangler_apply {options}; GRANT pg_read_all_stats TO strangler_apply; {right}");
    client.batch_execute(&sql).await.unwrap();
}

/// The application at work.
pub struct Till {
    stop: CancellationToken,
    road: Arc<RwLock<()>>,
    customers: JoinHandle<Vec<String>>,
}

impl Till {
    /// Nobody orders while this lives.
    pub async fn pause(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.road.write().await
    }

    /// Ends it, and returns the numbers of all orders that were acknowledged.
    pub async fn close(self) -> Vec<String> {
        self.stop.cancel();
        self.customers.await.unwrap()
    }
}

/// Whoever is refused at one side goes to the other.
async fn serve(sides: [(Client, &str); 2], stop: CancellationToken, road: Arc<RwLock<()>>) -> Vec<String> {
    let (mut acknowledged, mut side) = (Vec::new(), 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    while !stop.is_cancelled() {
        ticks.tick().await;
        let _open = road.read().await;
        let (client, orders) = &sides[side];
        let sql = format!(
            r#"INSERT INTO {orders} ("OrderNumber", "CustomerId", "Email", "ShippingAddress", "Total")
                VALUES (gen_random_uuid(), 1, 'customer1@example.com', '{{}}', 10) RETURNING "OrderNumber"::text"#
        );
        match client.query_one(&sql, &[]).await {
            Ok(row) => acknowledged.push(row.get(0)),
            Err(error) if error.as_db_error().is_some() => side = 1 - side,
            Err(error) => panic!("the application lost its server: {error:?}"),
        }
    }
    acknowledged
}
