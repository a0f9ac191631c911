//! A catalog read from a real server is what the server holds.

use strangler::catalog::{
    Catalog, ConstraintKind, DependentKind, Persistence, ReplicaIdentity, Table, TableKind, UserTypeKind,
};
use strangler::name::TableName;
use strangler::postgres::introspect;

use crate::support::cluster::{connect, launch};
use strangler::cluster::Cluster;

const SCHEMA: &str = r#"
CREATE SCHEMA sales;
CREATE TYPE sales.status AS ENUM ('new', 'paid', 'gone');
CREATE DOMAIN sales.money_amount AS numeric(12,2) DEFAULT 0 NOT NULL CONSTRAINT positive CHECK (VALUE >= 0);
CREATE DOMAIN public.state AS sales.status;
CREATE TYPE public.point3 AS (x int, "Y" numeric(4,1));
CREATE EXTENSION citext;
CREATE TABLE "Products" (
    "Id" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "Sku" varchar(40) NOT NULL UNIQUE,
    "Code" char(3) COLLATE "C",
    "Price" sales.money_amount,
    "Tags" text[] DEFAULT '{}',
    "Gross" numeric GENERATED ALWAYS AS ("Price" * 1.19) STORED,
    mail citext,
    CONSTRAINT price_low CHECK ("Price" < 1000000)
);
COMMENT ON TABLE "Products" IS 'what we sell';
COMMENT ON COLUMN "Products"."Sku" IS 'stock keeping unit';
CREATE INDEX by_lower ON "Products" (lower("Sku")) INCLUDE ("Price") WHERE "Price" > 0;
CREATE SEQUENCE pool INCREMENT 50 CACHE 5;
CREATE TABLE sales.orders (
    id bigserial PRIMARY KEY,
    product int NOT NULL REFERENCES "Products" ON DELETE CASCADE,
    state sales.status NOT NULL DEFAULT 'new',
    states public.state[],
    number bigint NOT NULL DEFAULT nextval('pool'),
    at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE TABLE invoices (number bigint NOT NULL DEFAULT nextval('pool'), body text);
CREATE UNIQUE INDEX invoices_number ON invoices (number);
ALTER TABLE invoices REPLICA IDENTITY USING INDEX invoices_number;
CREATE UNLOGGED TABLE hot (id int);
ALTER TABLE hot REPLICA IDENTITY FULL;
CREATE TABLE events (id uuid, at date NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY RANGE (at);
CREATE TABLE events_2025_a PARTITION OF events_2025 FOR VALUES FROM ('2025-01-01') TO ('2025-07-01');
INSERT INTO events SELECT gen_random_uuid(), '2025-02-01' FROM generate_series(1, 500);
CREATE TABLE child () INHERITS (invoices);
CREATE VIEW totals AS SELECT product, count(*) FROM sales.orders GROUP BY 1;
CREATE MATERIALIZED VIEW totals_kept AS SELECT * FROM totals;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE "Products" SET mail = mail; RETURN NULL; END';
CREATE FUNCTION price("Products") RETURNS numeric LANGUAGE sql AS 'SELECT 1.0';
CREATE TRIGGER audit AFTER UPDATE ON sales.orders EXECUTE FUNCTION touch();
ALTER TABLE sales.orders ENABLE ALWAYS TRIGGER audit;
CREATE RULE no_delete AS ON DELETE TO invoices DO INSTEAD NOTHING;
ALTER TABLE "Products" ENABLE ROW LEVEL SECURITY;
CREATE POLICY sold ON "Products" USING (EXISTS (SELECT FROM sales.orders));
CREATE PUBLICATION feed FOR TABLE invoices;
CREATE ROLE reader LOGIN;
GRANT USAGE ON SCHEMA sales TO reader;
GRANT SELECT ON sales.orders TO reader;
INSERT INTO invoices SELECT g, 'x' FROM generate_series(1, 1000) g;
ANALYZE invoices;
"#;

fn table<'a>(catalog: &'a Catalog, schema: &str, name: &str) -> &'a Table {
    catalog.table(&TableName::new(schema, name)).unwrap()
}

fn depends(catalog: &Catalog, kind: DependentKind, table: TableName, name: &str) -> bool {
    catalog.dependents.iter().any(|d| d.kind == kind && d.table == table && d.name == name)
}

#[tokio::test]
async fn a_catalog_holds_what_the_server_holds() {
    let server = launch();
    let client = connect(&server.admin_url()).await;
    client.batch_execute(SCHEMA).await.unwrap();
    let catalog = introspect::read(&client).await.unwrap();

    assert_eq!(catalog.database, "postgres");
    assert_eq!(catalog.version_num, server.version_num());
    assert_eq!(catalog.encoding, "UTF8");
    assert!(catalog.collation.starts_with("libc:"), "{}", catalog.collation);
    assert_eq!(catalog.settings["wal_level"], "logical");
    assert_eq!(catalog.identity.database_uuid, None);
    assert!(catalog.identity.system_identifier.len() > 10);
    assert_eq!(catalog.schemas, ["public", "sales"]);
    assert!(catalog.extensions.contains_key("citext"));
    products_are_read(&catalog);
    orders_are_read(&catalog);
    odd_tables_are_read(&catalog);
    types_and_sequences_are_read(&catalog);
    dependents_are_read(&catalog);
}

fn products_are_read(catalog: &Catalog) {
    let products = table(catalog, "public", "Products");
    assert_eq!(products.comment.as_deref(), Some("what we sell"));
    assert_eq!(products.key_columns(), Some(vec!["Id"]));
    assert!(products.row_security && products.can_select && products.can_own);
    let column = |name| products.column(name).unwrap();
    assert_eq!(column("Id").identity, Some('a'));
    assert_eq!(column("Id").sequence, Some(TableName::new("public", "Products_Id_seq")));
    assert_eq!(column("Sku").type_sql, "character varying(40)");
    assert_eq!(column("Sku").cast_sql, "character varying");
    assert_eq!(column("Sku").comment.as_deref(), Some("stock keeping unit"));
    assert_eq!(column("Code").cast_sql, "bpchar");
    assert_eq!(column("Code").collation_sql.as_deref(), Some("pg_catalog.\"C\""));
    assert!(column("Code").collation_is_c && !column("Sku").collation_is_c);
    assert_eq!(column("Price").type_sql, "sales.money_amount");
    assert_eq!(column("Price").base_kind, 'b');
    assert_eq!(column("Price").user_type, Some(TableName::new("sales", "money_amount")));
    assert!(!column("Price").type_builtin && column("Tags").type_builtin);
    assert_eq!(column("Tags").default_sql.as_deref(), Some("'{}'::text[]"));
    assert!(column("Gross").generated_sql.is_some() && column("Gross").default_sql.is_none());
    assert_eq!(column("mail").user_type, Some(TableName::new("public", "citext")));
    let index = products.indexes.iter().find(|index| index.name == "by_lower").unwrap();
    assert_eq!(index.columns, [None], "an expression has no name and INCLUDE columns are no key");
    assert!(index.partial && !index.unique && index.constraint.is_none());
    assert!(index.definition_sql.contains("ON public.\"Products\""), "{}", index.definition_sql);
    let check = products.constraints.iter().find(|one| one.name == "price_low").unwrap();
    assert_eq!((check.kind, check.columns.as_slice()), (ConstraintKind::Check, &["Price".to_owned()][..]));
}

fn orders_are_read(catalog: &Catalog) {
    let orders = table(catalog, "sales", "orders");
    assert_eq!(orders.column("state").unwrap().base_kind, 'e');
    assert_eq!(orders.column("states").unwrap().base_kind, 'e', "under array and domain");
    assert_eq!(orders.column("states").unwrap().user_type, Some(TableName::new("public", "state")));
    assert_eq!(orders.column("number").unwrap().sequence, Some(TableName::new("public", "pool")));
    assert_eq!(orders.column("at").unwrap().type_sql, "timestamp(3) with time zone");
    assert_eq!(orders.column("at").unwrap().cast_sql, "timestamp with time zone");
    let [key] = catalog.foreign_keys.as_slice() else { panic!("{:?}", catalog.foreign_keys) };
    assert_eq!((key.columns.as_slice(), key.on_delete), (&["product".to_owned()][..], 'c'));
    assert_eq!(key.references, TableName::new("public", "Products"));
    assert_eq!(key.referenced_columns, ["Id"]);
    assert!(key.definition_sql.contains("REFERENCES public.\"Products\""), "{}", key.definition_sql);
}

fn odd_tables_are_read(catalog: &Catalog) {
    let invoices = table(catalog, "public", "invoices");
    assert_eq!(invoices.replica_identity, ReplicaIdentity::Index("invoices_number".into()));
    assert_eq!(invoices.key_columns(), Some(vec!["number"]));
    assert!((invoices.rows_estimate - 1000.0).abs() < f64::EPSILON && invoices.heap_bytes > 0);
    assert_eq!(invoices.column("number").unwrap().correlation, Some(1.0));
    assert_eq!(table(catalog, "public", "child").inherits, std::slice::from_ref(&invoices.name));
    let hot = table(catalog, "public", "hot");
    assert_eq!((hot.persistence, &hot.replica_identity), (Persistence::Unlogged, &ReplicaIdentity::Full));
    let events = table(catalog, "public", "events");
    let leaf = table(catalog, "public", "events_2025_a");
    assert_eq!(events.kind, TableKind::Partitioned);
    assert_eq!(leaf.partition_of, Some(TableName::new("public", "events_2025")));
    assert!(leaf.heap_bytes > 0);
    assert_eq!(events.heap_bytes, leaf.heap_bytes, "the root's size is that of its leaves");
    assert_eq!(table(catalog, "public", "totals").kind, TableKind::View);
}

fn types_and_sequences_are_read(catalog: &Catalog) {
    let kind = |schema: &str, name: &str| &catalog.types[&TableName::new(schema, name)].kind;
    assert_eq!(
        *kind("sales", "status"),
        UserTypeKind::Enum(vec!["new".into(), "paid".into(), "gone".into()])
    );
    let UserTypeKind::Domain { base_sql, not_null, checks, base_type, .. } = kind("sales", "money_amount")
    else {
        panic!("not a domain")
    };
    assert_eq!((base_sql.as_str(), *not_null, base_type), ("numeric(12,2)", true, &None));
    assert_eq!(checks[0].0, "positive");
    let UserTypeKind::Domain { base_type, .. } = kind("public", "state") else { panic!("not a domain") };
    assert_eq!(*base_type, Some(TableName::new("sales", "status")));
    let fields = vec![("x".to_owned(), "integer".to_owned()), ("Y".to_owned(), "numeric(4,1)".to_owned())];
    assert_eq!(*kind("public", "point3"), UserTypeKind::Composite(fields));
    assert_eq!(catalog.types[&TableName::new("public", "citext")].extension.as_deref(), Some("citext"));
    assert!(!catalog.types.contains_key(&TableName::new("public", "Products")), "row types are no types");

    let pool = &catalog.sequences[&TableName::new("public", "pool")];
    assert_eq!((pool.increment, pool.cache, &pool.owned_by), (50, 5, &None));
    let users: Vec<String> = pool.used_by.iter().map(|(table, column)| format!("{table}:{column}")).collect();
    assert_eq!(users, ["child:number", "invoices:number", "sales.orders:number"]);
    let serial = &catalog.sequences[&TableName::new("sales", "orders_id_seq")];
    assert_eq!(serial.owned_by, Some((TableName::new("sales", "orders"), "id".into())));
    assert_eq!(serial.used_by.len(), 1);
}

fn dependents_are_read(catalog: &Catalog) {
    let products = || TableName::new("public", "Products");
    let orders = || TableName::new("sales", "orders");
    let invoices = || TableName::new("public", "invoices");
    let expected = [
        (DependentKind::View, orders(), "totals"),
        (DependentKind::MaterializedView, orders(), "totals_kept"),
        (DependentKind::Function, products(), "touch"),
        (DependentKind::Function, products(), "price"),
        (DependentKind::Trigger, orders(), "audit on sales.orders"),
        (DependentKind::Rule, invoices(), "no_delete on invoices"),
        (DependentKind::Policy, products(), "sold on Products"),
        (DependentKind::Policy, orders(), "sold on Products"),
        (DependentKind::Publication, invoices(), "feed"),
    ];
    for (kind, table, name) in expected {
        assert!(
            depends(catalog, kind, table.clone(), name),
            "{kind:?} {table} {name}: {:#?}",
            catalog.dependents
        );
    }
    let trigger = catalog.dependents.iter().find(|d| d.kind == DependentKind::Trigger).unwrap();
    assert_eq!(trigger.detail, "A");
}

#[tokio::test]
async fn an_ordinary_role_reads_the_same_structure() {
    let server = launch();
    let admin = connect(&server.admin_url()).await;
    admin.batch_execute(SCHEMA).await.unwrap();
    let reader = connect(&server.url_as("reader", "", "postgres")).await;
    let full = introspect::read(&admin).await.unwrap();
    let seen = introspect::read(&reader).await.unwrap();
    assert_eq!(full.tables.keys().collect::<Vec<_>>(), seen.tables.keys().collect::<Vec<_>>());
    assert_eq!(full.identity, seen.identity);
    let orders = table(&seen, "sales", "orders");
    assert!(orders.can_select && !orders.can_own);
    assert!(!table(&seen, "public", "Products").can_select);
    assert_eq!(table(&seen, "public", "invoices").column("number").unwrap().correlation, None);
}

#[tokio::test]
async fn rights_that_are_missing_for_the_identity_are_named() {
    let server = launch();
    let admin = connect(&server.admin_url()).await;
    admin
        .batch_execute(
            "CREATE ROLE reader LOGIN; CREATE SCHEMA strangler; CREATE TABLE strangler.database (uuid uuid);
             INSERT INTO strangler.database VALUES ('4f4f6f2c-0a3e-4e7c-9d6c-1c9be1d9c001')",
        )
        .await
        .unwrap();
    let reader = connect(&server.url_as("reader", "", "postgres")).await;
    let error = introspect::read(&reader).await.unwrap_err();
    assert!(error.to_string().contains("GRANT SELECT ON strangler.database TO reader"), "{error}");
    let uuid = introspect::read(&admin).await.unwrap().identity.database_uuid;
    assert_eq!(uuid.as_deref(), Some("4f4f6f2c-0a3e-4e7c-9d6c-1c9be1d9c001"));

    admin.batch_execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await.unwrap();
    let error = introspect::read(&reader).await.unwrap_err();
    assert!(
        error.to_string().contains("GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system()"),
        "{error}"
    );
    reader.batch_execute("BEGIN; COMMIT").await.unwrap();
}
