//! The statements about orders, in the words of the monolith's tables and of the service's.

use tokio_postgres::{Error, Transaction};

use super::super::owner::{Side, Work};

/// A line of an order that is to be placed.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) product: i32,
    pub(super) sku: String,
    pub(super) name: String,
    /// As the server writes it.
    pub(super) price: String,
}

/// An order that is to be placed. Its number makes a repetition harmless.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) number: String,
    pub(super) customer: i32,
    pub(super) email: String,
    pub(super) lines: Vec<Line>,
}

/// The payment of an order, or its end: the same when it is done twice.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) number: String,
    pub(super) paid: bool,
}

/// The statements of one side.
struct Words {
    place: &'static str,
    lines: &'static str,
    change: &'static str,
    empty: &'static str,
}

const MONOLITH: Words = Words {
    place: r#"INSERT INTO "Orders" ("OrderNumber", "CustomerId", "Email", "ShippingAddress", "Total")
        VALUES ($1::text::uuid, $2, $3, jsonb_build_object('city', 'Town 7', 'country', 'DE'),
            (SELECT coalesce(sum(price::numeric), 0) FROM unnest($4::text[]) AS price))
        ON CONFLICT ("OrderNumber") DO NOTHING RETURNING "Id""#,
    lines: r#"INSERT INTO "OrderLines" ("OrderId", "ProductId", "Sku", "Name", "UnitPrice", "Quantity")
        SELECT $1, product, sku, name, price::numeric, 1
        FROM unnest($2::int[], $3::text[], $4::text[], $5::text[]) AS line (product, sku, name, price)"#,
    change: r#"UPDATE "Orders" SET "Status" = $2::text::"OrderStatus" WHERE "OrderNumber" = $1::text::uuid"#,
    empty: r#"DELETE FROM "OrderLines" WHERE "OrderId" = (SELECT "Id" FROM "Orders" WHERE "OrderNumber" = $1::text::uuid)"#,
};

const SERVICE: Words = Words {
    place: r#"INSERT INTO sales."Orders" ("OrderNumber", "CustomerId", "Email", "ShippingAddress", "Total")
        VALUES ($1::text::uuid, $2, $3, jsonb_build_object('city', 'Town 7', 'country', 'DE'),
            (SELECT coalesce(sum(price::numeric), 0) FROM unnest($4::text[]) AS price))
        ON CONFLICT ("OrderNumber") DO NOTHING RETURNING "Id""#,
    lines: "INSERT INTO sales.order_lines (order_id, product_id_ref, sku, name, unit_price, quantity)
        SELECT $1, product, sku, name, price::numeric, 1
        FROM unnest($2::int[], $3::text[], $4::text[], $5::text[]) AS line (product, sku, name, price)",
    change: r#"UPDATE sales."Orders" SET "Status" = $2::text::"OrderStatus" WHERE "OrderNumber" = $1::text::uuid"#,
    empty: r#"DELETE FROM sales.order_lines WHERE order_id = (SELECT "Id" FROM sales."Orders" WHERE "OrderNumber" = $1::text::uuid)"#,
};

/// Looks orders up by their numbers: number, status, lines.
pub(in crate::demo) const FIND: [&str; 2] = [
    r#"SELECT "OrderNumber"::text, "Status"::text, (SELECT count(*) FROM "OrderLines" WHERE "OrderId" = o."Id")
       FROM "Orders" o WHERE "OrderNumber" = ANY ($1::text[]::uuid[])"#,
    r#"SELECT "OrderNumber"::text, "Status"::text, (SELECT count(*) FROM sales.order_lines WHERE order_id = o."Id")
       FROM sales."Orders" o WHERE "OrderNumber" = ANY ($1::text[]::uuid[])"#,
];

fn words(side: Side) -> &'static Words {
    match side {
        Side::Monolith => &MONOLITH,
        Side::Service => &SERVICE,
    }
}

impl Work for Order {
    async fn run(&self, to: &Transaction<'_>, side: Side) -> Result<(), Error> {
        let column = |value: fn(&Line) -> &String| self.lines.iter().map(value).collect::<Vec<_>>();
        let products: Vec<i32> = self.lines.iter().map(|line| line.product).collect();
        let prices = column(|line| &line.price);
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.number, &self.customer, &self.email, &prices];
        let Some(row) = to.query_opt(words(side).place, &parameters).await? else {
            // An earlier attempt did it, and its answer was lost.
            return Ok(());
        };
        let id: i64 = row.try_get(0)?;
        let (skus, names) = (column(|line| &line.sku), column(|line| &line.name));
        to.execute(words(side).lines, &[&id, &products, &skus, &names, &prices]).await?;
        Ok(())
    }
}

impl Work for Change {
    async fn run(&self, to: &Transaction<'_>, side: Side) -> Result<(), Error> {
        let status = if self.paid { "Paid" } else { "Cancelled" };
        to.execute(words(side).change, &[&self.number, &status]).await?;
        if !self.paid {
            to.execute(words(side).empty, &[&self.number]).await?;
        }
        Ok(())
    }
}
