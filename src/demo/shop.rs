//! The retail application's transactions, as its code would send them.

use tokio_postgres::{Client, Config, NoTls, Transaction};

/// Ids that `plans/retail_data.sql` gives out; the application knows its customers and products.
const CUSTOMERS: i32 = 8_000;
const PRODUCTS: i32 = 6_000;
const INVENTORY_ITEMS: i32 = 12_000;

/// Open carts and unpaid orders that one user session keeps in mind; the oldest are forgotten first.
const REMEMBERED: usize = 64;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Acknowledged by the server.
    Committed,
    /// Given up by the application.
    RolledBack,
}

/// What a user session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Everything that the shop does.
    All,
    /// All but placing, paying and cancelling orders, which somebody else does.
    WithoutOrders,
}

/// Of a hundred acts, those that write orders.
const ON_ORDERS: std::ops::Range<u32> = 30..67;

/// One user session of the shop, on its own connection.
#[derive(Debug)]
pub(super) struct Shop {
    client: Client,
    work: Work,
    random: fastrand::Rng,
    carts: Vec<String>,
    orders: Vec<i64>,
    acts: u64,
}

/// What a user or an employee does, with all values decided.
#[derive(Debug)]
enum Action {
    FillCart { cart: String, customer: i32, products: Vec<i32> },
    AbandonCart { cart: String },
    CheckOut { cart: String, saga: String },
    Pay { order: i64, key: String },
    CancelOrder { order: i64 },
    Restock { item: i32, quantity: i32 },
    Reprice { product: i32, percent: i32 },
    Rename { product: i32, edition: i32 },
    Review { product: i32, customer: i32, stars: i16 },
    ChangeMind { product: i32 },
}

impl Shop {
    /// Connects. The same seed makes the same decisions in the same order.
    pub(super) async fn open(config: &Config, work: Work, seed: u64) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        // The connection ends with its client; what went wrong on it comes out of the client's calls.
        tokio::spawn(connection);
        Ok(Self {
            client,
            work,
            random: fastrand::Rng::with_seed(seed),
            carts: Vec::new(),
            orders: Vec::new(),
            acts: 0,
        })
    }

    /// The connection is gone; only opening a new shop helps.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Transactions tried so far.
    pub(super) fn acts(&self) -> u64 {
        self.acts
    }

    /// Does the next thing, in one transaction.
    pub(super) async fn act(&mut self) -> Result<Outcome, tokio_postgres::Error> {
        self.acts += 1;
        let action = self.decide();
        let transaction = self.client.transaction().await?;
        let order = perform(&transaction, &action).await?;
        if matches!(action, Action::ChangeMind { .. }) {
            transaction.rollback().await?;
            return Ok(Outcome::RolledBack);
        }
        transaction.commit().await?;
        if let Action::FillCart { cart, .. } = action {
            remember(&mut self.carts, cart);
        }
        if let Some(order) = order {
            remember(&mut self.orders, order);
        }
        Ok(Outcome::Committed)
    }

    fn decide(&mut self) -> Action {
        let dice = self.random.u32(0..100);
        let product = self.random.i32(1..=PRODUCTS);
        if self.work == Work::WithoutOrders && ON_ORDERS.contains(&dice) {
            return self.restock();
        }
        match dice {
            0..30 => Action::FillCart {
                cart: self.uuid(),
                customer: self.random.i32(1..=CUSTOMERS),
                products: (0..self.random.i32(1..5)).map(|_| self.random.i32(1..=PRODUCTS)).collect(),
            },
            30..50 => match take(&mut self.carts, &mut self.random) {
                Some(cart) => Action::CheckOut { cart, saga: self.uuid() },
                None => Action::Reprice { product, percent: self.random.i32(90..=110) },
            },
            50..64 => match take(&mut self.orders, &mut self.random) {
                Some(order) => Action::Pay { order, key: self.uuid() },
                None => self.restock(),
            },
            64..67 => match take(&mut self.orders, &mut self.random) {
                Some(order) => Action::CancelOrder { order },
                None => self.restock(),
            },
            67..72 => match take(&mut self.carts, &mut self.random) {
                Some(cart) => Action::AbandonCart { cart },
                None => self.restock(),
            },
            72..82 => self.restock(),
            82..90 => Action::Reprice { product, percent: self.random.i32(90..=110) },
            // Every tenth product has its description out of line, and a new name leaves that untouched: the
            // stream then says "unchanged" instead of the text.
            90..94 => Action::Rename { product: product / 10 * 10 + 10, edition: self.random.i32(1..100) },
            94..97 => Action::Review {
                product,
                customer: self.random.i32(1..=CUSTOMERS),
                stars: self.random.i16(1..=5),
            },
            _ => Action::ChangeMind { product },
        }
    }

    fn restock(&mut self) -> Action {
        Action::Restock { item: self.random.i32(1..=INVENTORY_ITEMS), quantity: self.random.i32(1..20) }
    }

    fn uuid(&mut self) -> String {
        uuid(&mut self.random)
    }
}

/// A version 4 UUID, as the application's own code makes them.
pub(super) fn uuid(random: &mut fastrand::Rng) -> String {
    let bits = random.u128(..);
    let hex = format!("{:032x}", bits & !(0xF << 76) | (0x4 << 76));
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

fn remember<T>(list: &mut Vec<T>, item: T) {
    if list.len() >= REMEMBERED {
        list.remove(0);
    }
    list.push(item);
}

fn take<T>(list: &mut Vec<T>, random: &mut fastrand::Rng) -> Option<T> {
    if list.is_empty() { None } else { Some(list.swap_remove(random.usize(0..list.len()))) }
}

/// Sends the action's statements. Gives the id of an order that was placed.
async fn perform(to: &Transaction<'_>, action: &Action) -> Result<Option<i64>, tokio_postgres::Error> {
    match action {
        Action::FillCart { cart, customer, products } => fill_cart(to, cart, *customer, products).await?,
        Action::CheckOut { cart, saga } => return check_out(to, cart, saga).await,
        Action::Pay { order, key } => pay(to, *order, key).await?,
        Action::CancelOrder { order } => cancel_order(to, *order).await?,
        Action::AbandonCart { cart } => {
            to.execute(r#"DELETE FROM "Carts" WHERE "Id" = $1::text::uuid"#, &[cart]).await?;
        }
        Action::Restock { item, quantity } => restock(to, *item, *quantity).await?,
        Action::Reprice { product, percent } => {
            let sql = r#"UPDATE "Products" SET "Price" = greatest(round("Price" * $2::int / 100, 2), 0.01), "UpdatedAt" = now()
                         WHERE "Id" = $1"#;
            to.execute(sql, &[product, percent]).await?;
            audit(to, "Products", i64::from(*product), "Repriced").await?;
        }
        Action::Rename { product, edition } => {
            let sql = r#"UPDATE "Products" SET "Name" = 'Product ' || "Id" || ', edition ' || $2::int, "UpdatedAt" = now()
                         WHERE "Id" = $1"#;
            to.execute(sql, &[product, edition]).await?;
        }
        Action::Review { product, customer, stars } => {
            let sql = r#"INSERT INTO "Reviews" ("ProductId", "CustomerId", "Stars") VALUES ($1, $2, $3)"#;
            to.execute(sql, &[product, customer, stars]).await?;
        }
        Action::ChangeMind { product } => {
            to.execute(r#"UPDATE "Products" SET "IsActive" = false WHERE "Id" = $1"#, &[product]).await?;
        }
    }
    Ok(None)
}

async fn fill_cart(
    to: &Transaction<'_>,
    cart: &str,
    customer: i32,
    products: &[i32],
) -> Result<(), tokio_postgres::Error> {
    let sql = r#"INSERT INTO "Carts" ("Id", "CustomerId") VALUES ($1::text::uuid, $2)"#;
    to.execute(sql, &[&cart, &customer]).await?;
    let sql = r#"INSERT INTO "CartLines" ("CartId", "ProductId", "UnitPrice", "Quantity")
                 SELECT $1::text::uuid, "Id", "Price", 1 + "Id" % 3 FROM "Products" WHERE "Id" = ANY ($2)"#;
    to.execute(sql, &[&cart, &products]).await?;
    Ok(())
}

/// The transaction that a split makes impossible: it touches the tables of five services at once.
async fn check_out(
    to: &Transaction<'_>,
    cart: &str,
    saga: &str,
) -> Result<Option<i64>, tokio_postgres::Error> {
    let sql = r#"INSERT INTO "Orders" ("OrderNumber", "CustomerId", "Email", "ShippingAddress", "Total")
        SELECT $2::text::uuid, u."Id", u."Email", jsonb_build_object('city', 'Town ' || u."Id" % 90, 'country', 'DE'),
               (SELECT coalesce(sum("UnitPrice" * "Quantity"), 0) FROM "CartLines" WHERE "CartId" = c."Id")
        FROM "Carts" c JOIN "Customers" u ON u."Id" = c."CustomerId" WHERE c."Id" = $1::text::uuid
        RETURNING "Id""#;
    let Some(row) = to.query_opt(sql, &[&cart, &saga]).await? else { return Ok(None) };
    let order: i64 = row.try_get(0)?;
    let sql = r#"INSERT INTO "OrderLines" ("OrderId", "ProductId", "Sku", "Name", "UnitPrice", "Quantity")
        SELECT $2, p."Id", p."Sku", p."Name", l."UnitPrice", l."Quantity"
        FROM "CartLines" l JOIN "Products" p ON p."Id" = l."ProductId" WHERE l."CartId" = $1::text::uuid"#;
    to.execute(sql, &[&cart, &order]).await?;
    let sql = r#"UPDATE "InventoryItems" i SET "Reserved" = i."Reserved" + l."Quantity", "RowVersion" = i."RowVersion" + 1
        FROM "OrderLines" l WHERE l."OrderId" = $1 AND i."ProductId" = l."ProductId" AND i."Warehouse" = 'north'"#;
    to.execute(sql, &[&order]).await?;
    let sql = r#"INSERT INTO "CheckoutSagas" ("Id", "CartId", "OrderId", "State") VALUES ($1::text::uuid, $2::text::uuid, $3, 'StockReserved')"#;
    to.execute(sql, &[&saga, &cart, &order]).await?;
    let sql = r#"INSERT INTO "CheckoutSteps" ("SagaId", "Step", "Name") VALUES ($1::text::uuid, 1, 'ReserveStock'), ($1::text::uuid, 2, 'CreateOrder')"#;
    to.execute(sql, &[&saga]).await?;
    // The cart is done with. Its lines go by ON DELETE CASCADE, the saga's CartId by ON DELETE SET NULL.
    to.execute(r#"DELETE FROM "Carts" WHERE "Id" = $1::text::uuid"#, &[&cart]).await?;
    Ok(Some(order))
}

async fn pay(to: &Transaction<'_>, order: i64, key: &str) -> Result<(), tokio_postgres::Error> {
    let sql = r#"INSERT INTO "Payments" ("OrderId", "IdempotencyKey", "Amount", "Status", "CardLastFour")
        SELECT "Id", $2::text::uuid, "Total", 'Captured', '4242' FROM "Orders" WHERE "Id" = $1 RETURNING "Id""#;
    let payment: i64 = to.query_one(sql, &[&order, &key]).await?.try_get(0)?;
    let sql = r#"INSERT INTO "PaymentAttempts" ("PaymentId", "Attempt", "Succeeded") VALUES ($1, 1, false), ($1, 2, true)"#;
    to.execute(sql, &[&payment]).await?;
    let sql = r#"UPDATE "InventoryItems" i SET "Reserved" = i."Reserved" - l."Quantity", "OnHand" = i."OnHand" - l."Quantity",
               "RowVersion" = i."RowVersion" + 1
        FROM "OrderLines" l WHERE l."OrderId" = $1 AND i."ProductId" = l."ProductId" AND i."Warehouse" = 'north'"#;
    to.execute(sql, &[&order]).await?;
    let sql = r#"INSERT INTO "StockMovements" ("InventoryItemId", "OrderId", "Quantity", "Reason")
        SELECT i."Id", l."OrderId", -l."Quantity", 'sale' FROM "OrderLines" l
        JOIN "InventoryItems" i ON i."ProductId" = l."ProductId" AND i."Warehouse" = 'north' WHERE l."OrderId" = $1"#;
    to.execute(sql, &[&order]).await?;
    to.execute(r#"UPDATE "Orders" SET "Status" = 'Paid' WHERE "Id" = $1"#, &[&order]).await?;
    let sql = r#"WITH done AS (UPDATE "CheckoutSagas" SET "State" = 'Completed', "CompletedAt" = now() WHERE "OrderId" = $1 RETURNING "Id")
        INSERT INTO "CheckoutSteps" ("SagaId", "Step", "Name") SELECT "Id", 3, 'TakePayment' FROM done"#;
    to.execute(sql, &[&order]).await?;
    audit(to, "Orders", order, "Paid").await
}

async fn cancel_order(to: &Transaction<'_>, order: i64) -> Result<(), tokio_postgres::Error> {
    let sql = r#"UPDATE "Orders" SET "Status" = 'Cancelled', "Notes" = 'Cancelled by the customer' WHERE "Id" = $1"#;
    to.execute(sql, &[&order]).await?;
    let sql = r#"UPDATE "InventoryItems" i SET "Reserved" = i."Reserved" - l."Quantity", "RowVersion" = i."RowVersion" + 1
        FROM "OrderLines" l WHERE l."OrderId" = $1 AND i."ProductId" = l."ProductId" AND i."Warehouse" = 'north'"#;
    to.execute(sql, &[&order]).await?;
    let sql =
        r#"UPDATE "CheckoutSagas" SET "State" = 'Compensated', "CompletedAt" = now() WHERE "OrderId" = $1"#;
    to.execute(sql, &[&order]).await?;
    // Half of a cancelled order's lines are taken out, so that the stream carries deletes of this table too.
    to.execute(r#"DELETE FROM "OrderLines" WHERE "OrderId" = $1 AND "Id" % 2 = 0"#, &[&order]).await?;
    audit(to, "Orders", order, "Cancelled").await
}

async fn restock(to: &Transaction<'_>, item: i32, quantity: i32) -> Result<(), tokio_postgres::Error> {
    let sql = r#"UPDATE "InventoryItems" SET "OnHand" = "OnHand" + $2, "RowVersion" = "RowVersion" + 1 WHERE "Id" = $1"#;
    to.execute(sql, &[&item, &quantity]).await?;
    let sql = r#"INSERT INTO "StockMovements" ("InventoryItemId", "Quantity", "Reason") VALUES ($1, $2, 'delivery')"#;
    to.execute(sql, &[&item, &quantity]).await?;
    Ok(())
}

async fn audit(
    to: &Transaction<'_>,
    entity: &str,
    id: i64,
    action: &str,
) -> Result<(), tokio_postgres::Error> {
    let sql = r#"INSERT INTO "AuditLog" ("Entity", "EntityId", "Action") VALUES ($1, $2::bigint::text, $3)"#;
    to.execute(sql, &[&entity, &id, &action]).await?;
    Ok(())
}
