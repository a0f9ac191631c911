//! Provisioning on real servers: what comes out, what a second and a half-done run do, and what the gate refuses.

mod fixture;

use std::sync::Arc;

use fixture::{SCHEMA, Setup, rows};
use strangler::cluster::Cluster;
use strangler::journal::migrate;
use strangler::plan::{ColumnRule, Ddl};
use strangler::problem::Severity;
use strangler::provision::{
    Database, Databases, Design, Logins, ProvisionError, Statement, Step, Work, execute, run,
};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::cluster::{Pair, connect, launch};
use crate::support::scenario::author;
use crate::support::tables::difference;

async fn error_of(client: &Client, sql: &str) -> tokio_postgres::error::DbError {
    let outcome = if sql.starts_with("COPY") {
        // The trigger fires once the server has said that it is ready for rows.
        let sink = client.copy_in::<_, &[u8]>(sql).await.unwrap();
        std::pin::pin!(sink).finish().await.map(drop)
    } else {
        client.batch_execute(sql).await
    };
    let error = outcome.expect_err(sql);
    error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}")).clone()
}

#[tokio::test]
async fn service_gets_the_monoliths_tables_under_the_plans_names() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    let orders = setup.connect("orders").await;
    let columns = "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, attidentity::text, \
                   attgenerated::text, pg_get_expr(adbin, adrelid) FROM pg_attribute \
                   LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
                   WHERE attrelid = 'sales.order_lines'::regclass AND attnum > 0 ORDER BY attnum";
    assert_eq!(
        rows(&orders, columns).await,
        [
            "id|bigint|true|||nextval('sales.\"OrderLines_Id_seq\"'::regclass)",
            "order_id|bigint|true|||",
            "ProductId|integer|true|||",
            "price|\"Money\"|true|||",
            "qty|integer|true||(1 + 0)|".replace("||(1 + 0)|", "|||(1 + 0)").as_str(),
            "LineTotal|numeric(14,2)|false||s|((price)::numeric * (qty)::numeric)",
        ]
    );
    // From PostgreSQL 18 on NOT NULL stands among the constraints too, under a name that says nothing.
    let constraints = "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint \
                       WHERE connamespace = 'sales'::regnamespace AND contype <> 'n' ORDER BY 1";
    assert_eq!(
        rows(&orders, constraints).await,
        [
            "CK_OrderLines_Quantity|CHECK (((qty > 0) AND (qty < 1000)))",
            "PK_OrderLines|PRIMARY KEY (id)",
            "PK_Orders|PRIMARY KEY (\"Id\")",
        ],
        "all but keys and proven checks waits"
    );
    let comments = "SELECT col_description('sales.order_lines'::regclass, 3), \
                    col_description('sales.\"Orders\"'::regclass, 4), \
                    obj_description('sales.\"Orders\"'::regclass)";
    assert_eq!(
        rows(&orders, comments).await,
        ["Soft reference: (ProductId) holds Products(Id), which is not in this slice; nothing enforces it\
          |Where it stands|Placed orders, never deleted"]
    );
    let owners = "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class \
                  WHERE relnamespace = 'sales'::regnamespace AND relkind IN ('r', 'S')";
    assert_eq!(rows(&orders, owners).await, ["orders_owner_a"]);
    let mirror = "SELECT slice, source_table, target_table, state FROM strangler.mirror_table ORDER BY 2";
    assert_eq!(
        rows(&orders, mirror).await,
        ["ordering|OrderLines|sales.order_lines|pending", "ordering|Orders|sales.Orders|pending"]
    );
    let published = "SELECT pubname::text, tablename::text FROM pg_publication_tables ORDER BY 1, 2";
    assert_eq!(
        rows(&setup.connect("monolith").await, published).await,
        [
            "strangler_retail_catalog|Categories",
            "strangler_retail_catalog|Movements",
            "strangler_retail_catalog|Products",
            "strangler_retail_ordering|OrderLines",
            "strangler_retail_ordering|Orders",
        ]
    );
}

/// Comments of what is made at once and of what waits, and storage parameters.
const REMARKS: &str = r#"
COMMENT ON INDEX "PK_Products" IS 'of the key'; COMMENT ON CONSTRAINT "PK_Products" ON "Products" IS 'the key';
COMMENT ON INDEX "IX_Products_Tags" IS 'not UNIQUE; it''s many'; COMMENT ON CONSTRAINT "AK_Products_Sku" ON "Products" IS 'sku';
COMMENT ON CONSTRAINT "XK_Products_Season" ON "Products" IS 'one at a time';
COMMENT ON CONSTRAINT "CK_Products_Price" ON "Products" IS 'not too dear';
COMMENT ON CONSTRAINT "FK_Products_Categories" ON "Products" IS 'where it is found';
COMMENT ON SEQUENCE "Categories_Id_seq" IS 'tens'; COMMENT ON SEQUENCE "OrderLines_Id_seq" IS 'lines';
COMMENT ON CONSTRAINT "CK_Later" ON "Orders" IS 'one day';
COMMENT ON CONSTRAINT "CK_Money" ON DOMAIN "Money" IS 'never owed';
ALTER TABLE "Movements_2024" SET (fillfactor = 60, autovacuum_enabled = off); ALTER TABLE "Movements_Rest" SET (fillfactor = 60);
ALTER TABLE "Products" SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_enabled = off);
"#;

/// What is remarked about indexes, constraints and sequences of a schema.
fn remarks(schema: &str) -> String {
    format!(
        "SELECT coalesce(c.relname, k.conname)::text, c.relkind::text, d.description FROM pg_description d \
         LEFT JOIN pg_class c ON d.classoid = 'pg_class'::regclass AND c.oid = d.objoid AND c.relkind IN ('i', 'I', 'S') \
         LEFT JOIN pg_constraint k ON d.classoid = 'pg_constraint'::regclass AND k.oid = d.objoid \
         WHERE coalesce(c.relnamespace, k.connamespace) = '{schema}'::regnamespace ORDER BY 1, 3"
    )
}

/// A storage parameter of one partition stays behind, with what to type where it is wanted.
fn assert_parameter_is_left(done: &Design) {
    let left = done.problems.iter().find(|one| one.object.starts_with("storage parameter")).unwrap();
    assert_eq!(left.object, "storage parameter autovacuum_enabled=off of partitions of Movements");
    assert!(left.fact.starts_with("of 2 partitions only Movements_2024 has it"), "{left:?}");
    let typed = "run in the service: ALTER TABLE \"public\".\"Movements\" SET (autovacuum_enabled=off)";
    assert!(left.next.ends_with(typed), "{left:?}");
}

#[tokio::test]
async fn deferred_work_rebuilds_what_the_monolith_has() {
    let setup = Setup::new(Arc::new(launch()), "a", &format!("{SCHEMA}{REMARKS}")).await;
    assert_parameter_is_left(&setup.provision().await.unwrap());
    for service in ["orders", "products"] {
        let client = setup.connect(service).await;
        for row in client.query("SELECT create_sql FROM strangler.deferred ORDER BY id", &[]).await.unwrap() {
            let sql: String = row.get(0);
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }
    let sql = |schema: &str| {
        format!(
            "SELECT replace(regexp_replace(pg_get_constraintdef(oid), 'sales\\.', '', 'g'), 'public.', ''), conname::text \
             FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace AND conrelid <> 0 AND contype <> 'n' \
             AND conname NOT IN ('CK_Later', 'FK_Orders_Customers') AND conparentid = 0 ORDER BY conname"
        )
    };
    let products = setup.connect("products").await;
    let monolith = setup.connect("monolith").await;
    let here = rows(&products, &sql("public")).await;
    let there = rows(&monolith, &sql("public")).await;
    let of_products = |row: &&String| {
        !row.contains("OrderLines")
            && ["Products", "Categories", "Movements"]
                .iter()
                .any(|name| row.rsplit('|').next().unwrap().contains(name))
    };
    let there: Vec<&String> = there.iter().filter(|row| of_products(row)).collect();
    assert!(there.len() > 6, "{there:?}");
    assert_eq!(here.iter().collect::<Vec<_>>(), there);
    let indexes = "SELECT replace(indexdef, 'ON ONLY', 'ON') FROM pg_indexes WHERE schemaname = 'public' \
                   AND tablename IN ('Products', 'Categories', 'Movements') ORDER BY 1";
    assert_eq!(rows(&products, indexes).await, rows(&monolith, indexes).await);
    let of_products = |row: &String| {
        ["Products", "Categories", "Money"].iter().any(|name| row.split('|').next().unwrap().contains(name))
    };
    let there: Vec<String> =
        rows(&monolith, &remarks("public")).await.into_iter().filter(of_products).collect();
    assert_eq!(there.len(), 9, "{there:?}");
    assert_eq!(rows(&products, &remarks("public")).await, there);
    let storage = "SELECT c.reloptions::text, t.reloptions::text FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid \
                   WHERE c.relname = 'Products' AND c.relkind = 'r'";
    let parameters = rows(&products, storage).await;
    assert_eq!(parameters, ["{fillfactor=70,autovacuum_vacuum_scale_factor=0.05}|{autovacuum_enabled=off}"]);
    assert_eq!(parameters, rows(&monolith, storage).await);
    let partitioned = "SELECT reloptions::text FROM pg_class WHERE relname = 'Movements'";
    assert_eq!(rows(&products, partitioned).await, ["{fillfactor=60}"]);
    let orders = setup.connect("orders").await;
    let told = rows(&orders, &remarks("sales")).await;
    assert_eq!(told, ["CK_Later||one day", "OrderLines_Id_seq|S|lines"]);
    let indexes =
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'sales' AND tablename = 'order_lines' ORDER BY 1";
    assert_eq!(
        rows(&orders, indexes).await,
        [
            "CREATE INDEX \"IX_OrderLines_Order\" ON sales.order_lines USING btree (order_id DESC, abs(qty)) \
             INCLUDE (price) WITH (fillfactor='80') WHERE (qty > 1)",
            "CREATE UNIQUE INDEX \"PK_OrderLines\" ON sales.order_lines USING btree (id)",
        ]
    );
    let constraints = "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint \
                       WHERE conrelid = 'sales.order_lines'::regclass AND contype = 'f'";
    assert_eq!(
        rows(&orders, constraints).await,
        [
            "FK_OrderLines_Orders|FOREIGN KEY (order_id) REFERENCES sales.\"Orders\"(\"Id\") ON DELETE CASCADE \
          DEFERRABLE INITIALLY DEFERRED"
        ]
    );
    let open = "SELECT conname::text, pg_get_constraintdef(oid), convalidated FROM pg_constraint WHERE conname = 'CK_Later'";
    assert_eq!(rows(&orders, open).await, ["CK_Later|CHECK ((length(\"Note\") < 10)) NOT VALID|false"]);
}

#[tokio::test]
async fn second_run_changes_nothing() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    let first = setup.provision().await.unwrap();
    assert!(!first.steps.is_empty());
    let before = setup.fingerprint().await;
    let second = setup.provision().await.unwrap();
    assert_eq!(second.steps, []);
    assert_eq!(setup.fingerprint().await, before);
}

#[tokio::test]
async fn run_killed_between_steps_is_finished_by_the_next() {
    let cluster = Arc::new(launch());
    let whole = Setup::new(Arc::clone(&cluster), "zzw", SCHEMA).await;
    let total = whole.provision().await.unwrap().steps.len();
    let expected = whole.fingerprint().await;
    assert!(total > 10);
    // Two in the middle of things here; the test below looks at every place.
    for taken in [total / 3, total - 2] {
        let suffix = format!("zz{taken}");
        let setup = Setup::new(Arc::clone(&cluster), &suffix, SCHEMA).await;
        let mut databases = setup.databases().await;
        let design = setup.design(&databases).await;
        for step in design.steps.iter().take(taken) {
            execute(&mut databases, step).await.unwrap_or_else(|error| panic!("{}: {error:?}", step.text()));
        }
        drop(databases);
        setup.provision().await.unwrap_or_else(|error| panic!("after {taken} steps: {error:?}"));
        if let Some(words) = difference(&setup.fingerprint().await, &expected) {
            panic!("after {taken} steps: {words}");
        }
    }
}

#[tokio::test]
async fn after_every_step_exactly_the_others_are_left_to_do() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    let mut databases = setup.databases().await;
    let whole = setup.design(&databases).await.steps;
    for (step, taken) in whole.iter().zip(1..) {
        execute(&mut databases, step).await.unwrap_or_else(|error| panic!("{}: {error:?}", step.text()));
        let left = setup.design(&databases).await.steps;
        assert_eq!(left, whole[taken..], "after {taken} steps");
    }
}

#[tokio::test]
async fn a_step_that_fails_names_the_statement_that_it_failed_at() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    let statements = ["CREATE SCHEMA here", "GRANT USAGE ON SCHEMA nowhere TO PUBLIC", "CREATE SCHEMA there"];
    let step = Step {
        database: Database::Monolith,
        object: "rights".to_owned(),
        purpose: "grant".to_owned(),
        work: Work::Sql(statements.into_iter().map(Statement::from).collect()),
    };
    let failed = execute(&mut setup.databases().await, &step).await.unwrap_err().to_string();
    assert!(failed.contains(statements[1]) && !failed.contains("CREATE"), "{failed}");
}

#[tokio::test]
async fn dry_run_shows_the_sql_and_no_password() {
    let cluster = Arc::new(launch());
    let mut setup = Setup::new(Arc::clone(&cluster), "a", SCHEMA).await;
    setup.password("orders", "hunter2-of-orders");
    let databases = setup.databases().await;
    let design = setup.design(&databases).await;
    let text: String = design.steps.iter().map(strangler::provision::Step::text).collect();
    for word in [
        "CREATE TABLE \"sales\".\"order_lines\"",
        "CREATE ROLE strangler_apply LOGIN CONNECTION LIMIT 100 PASSWORD \
         '<SCRAM-SHA-256 verifier of the password in services.orders.apply>'",
        "CREATE PUBLICATION \"strangler_retail_ordering\" FOR TABLE ONLY \"public\".\"OrderLines\"",
        "CREATE TABLE strangler.mirror_table",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let all = format!("{text}{design:?}");
    assert!(!all.contains("hunter2") && !all.contains("SCRAM-SHA-256$"));
    let kept =
        rows(&databases.monolith, "SELECT count(*) FROM pg_namespace WHERE nspname = 'strangler'").await;
    assert_eq!(kept, ["0"], "looking makes nothing");
    drop(databases);
    setup.provision().await.unwrap();
    let verifier = "SELECT rolpassword ~ '^SCRAM-SHA-256[$]', rolconnlimit FROM pg_authid WHERE rolname = 'strangler_apply'";
    assert_eq!(rows(&setup.connect("orders").await, verifier).await, ["true|100"]);
}

#[tokio::test]
async fn fenced_table_refuses_every_write_but_the_mirrors() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    let app = setup.connect_as("orders", "orders_app_a").await;
    let superuser = setup.connect("orders").await;
    superuser.batch_execute("SET session_replication_role = replica").await.unwrap();
    let insert = "INSERT INTO sales.order_lines (id, order_id, \"ProductId\", price) VALUES (1, 1, 1, 1)";
    assert_eq!(rows(&app, "SELECT count(*) FROM sales.order_lines").await, ["0"], "reading is free");
    assert_eq!(rows(&app, "SELECT count(*) FROM strangler.freshness").await, ["0"]);
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        for client in [&app, &superuser] {
            for write in [
                insert,
                "UPDATE sales.order_lines SET qty = 2",
                "DELETE FROM sales.order_lines",
                "WITH gone AS (DELETE FROM sales.order_lines RETURNING 1) SELECT * FROM gone",
            ] {
                client.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}")).await.unwrap();
                let error = error_of(client, write).await;
                assert_eq!(
                    *error.code(),
                    SqlState::READ_ONLY_SQL_TRANSACTION,
                    "{isolation} {write}: {error}"
                );
                let hint = "slice ordering, epoch 1: retry the whole transaction on the owner, monolith";
                assert_eq!(error.hint(), Some(hint));
                assert_eq!(error.message(), "strangler: sales.order_lines is owned by monolith");
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    }
    for role in ["orders_app_a", "postgres"] {
        // A session of its own: the client library loses step with the server when COPY fails.
        let client = setup.connect_as("orders", role).await;
        let error = error_of(&client, "COPY sales.order_lines (id) FROM STDIN").await;
        assert_eq!(*error.code(), SqlState::READ_ONLY_SQL_TRANSACTION, "{role}: {error}");
    }
    let truncate = error_of(&superuser, "TRUNCATE sales.order_lines").await;
    assert_eq!(*truncate.code(), SqlState::READ_ONLY_SQL_TRANSACTION);
    let truncate = error_of(&app, "TRUNCATE sales.order_lines").await;
    assert_eq!(*truncate.code(), SqlState::INSUFFICIENT_PRIVILEGE, "the application has DML only");
    for sql in ["SELECT * FROM strangler.slice", "SELECT * FROM strangler.gate_ordering"] {
        assert_eq!(*error_of(&app, sql).await.code(), SqlState::INSUFFICIENT_PRIVILEGE, "{sql}");
    }
    let apply = setup.connect_as("orders", "strangler_apply").await;
    // PostgreSQL 14 can't let a role set it; there the role logs in with it.
    let all = format!(
        "SELECT set_config('session_replication_role', 'replica', false) \
             WHERE current_setting('session_replication_role') <> 'replica'; {insert}; UPDATE sales.order_lines SET qty = 2; \
         DELETE FROM sales.order_lines; TRUNCATE sales.order_lines; \
         INSERT INTO strangler.journal (actor, action) VALUES ('mirror', 'test'); \
         UPDATE strangler.mirror_table SET rows_copied = 1; UPDATE strangler.deferred SET done_at = now(); \
         SELECT * FROM strangler.slice, strangler.database, strangler.gate_ordering, strangler.freshness"
    );
    apply.batch_execute(&all).await.unwrap();
    superuser.batch_execute("UPDATE strangler.gate_ordering SET state = 'OPEN', epoch = 2").await.unwrap();
    app.batch_execute(insert).await.unwrap();
    app.batch_execute("UPDATE sales.order_lines SET qty = 2; DELETE FROM sales.order_lines").await.unwrap();
    app.batch_execute("INSERT INTO sales.order_lines (order_id, \"ProductId\", price) VALUES (1, 1, 1)")
        .await
        .unwrap();
}

#[tokio::test]
async fn transaction_that_saw_the_gate_open_fails_after_the_fence() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    let operator = setup.connect("orders").await;
    operator.batch_execute("UPDATE strangler.gate_ordering SET state = 'OPEN'").await.unwrap();
    let app = setup.connect_as("orders", "orders_app_a").await;
    app.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM sales.order_lines")
        .await
        .unwrap();
    operator.batch_execute("UPDATE strangler.gate_ordering SET state = 'FENCED'").await.unwrap();
    let error = error_of(&app, "DELETE FROM sales.order_lines").await;
    assert_eq!(*error.code(), SqlState::T_R_SERIALIZATION_FAILURE, "{error}");
}

#[tokio::test]
async fn monolith_stays_writable_and_without_triggers() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    let monolith = setup.connect("monolith").await;
    let gates = "SELECT state, epoch, cause, owner FROM strangler.gate_ordering";
    assert_eq!(rows(&monolith, gates).await, ["OPEN|1|open|monolith"]);
    assert_eq!(rows(&setup.connect("orders").await, gates).await, ["FENCED|1|fence|monolith"]);
    let triggers = "SELECT count(*) FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid \
                    WHERE NOT tgisinternal AND c.relnamespace <> 'strangler'::regnamespace";
    assert_eq!(rows(&monolith, triggers).await, ["0"]);
    let keys = "SELECT slice, side, lock_key FROM strangler.slice ORDER BY 1";
    assert_eq!(rows(&monolith, keys).await, ["catalog|monolith|1", "ordering|monolith|2"]);
}

#[tokio::test]
async fn changed_mapping_remakes_empty_tables_and_refuses_mirrored_ones() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    let rule = &mut setup.plan.slices.get_mut("ordering").unwrap().tables[1];
    rule.columns
        .insert("Quantity".to_owned(), ColumnRule::Keep { to: Some("amount".to_owned()), references: None });
    setup.provision().await.unwrap();
    let orders = setup.connect("orders").await;
    let there = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'sales.order_lines'::regclass AND attname = 'amount'";
    assert_eq!(rows(&orders, there).await, ["1"]);
    let app = setup.connect_as("orders", "orders_app_a").await;
    assert_eq!(rows(&app, "SELECT count(*) FROM sales.order_lines").await, ["0"], "rights came along");
    assert_eq!(setup.provision().await.unwrap().steps, []);

    orders.batch_execute("UPDATE strangler.mirror_table SET state = 'copying'").await.unwrap();
    let rule = &mut setup.plan.slices.get_mut("ordering").unwrap().tables[1];
    let again = ColumnRule::Keep { to: Some("number".to_owned()), references: None };
    rule.columns.insert("Quantity".to_owned(), again);
    let problems = setup.refused().await;
    assert!(problems.iter().any(|problem| problem.code == "mapping-changed"), "{problems:?}");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_all_at_once() {
    let cluster = Arc::new(launch());
    let setup = Setup::new(Arc::clone(&cluster), "a", SCHEMA).await;
    let orders = setup.connect("orders").await;
    orders
        .batch_execute(
            "CREATE SCHEMA sales; CREATE TABLE sales.\"Orders\" (x int); CREATE SEQUENCE sales.\"OrderLines_Id_seq\"; \
             CREATE TYPE public.\"OrderStatus\" AS ENUM ('other')",
        )
        .await
        .unwrap();
    setup
        .connect("monolith")
        .await
        .batch_execute(
            "CREATE FUNCTION public.code() RETURNS text LANGUAGE sql AS 'SELECT ''x'''; \
             ALTER TABLE \"Products\" ALTER COLUMN \"Name\" SET DEFAULT public.code()",
        )
        .await
        .unwrap();
    let problems = setup.refused().await;
    let codes: Vec<&str> = problems.iter().map(|problem| problem.code).collect();
    for code in ["table-taken", "sequence-taken", "type-differs", "routine-missing"] {
        assert!(codes.contains(&code), "{code}: {problems:#?}");
    }
    assert_eq!(rows(&orders, "SELECT count(*) FROM pg_namespace WHERE nspname = 'strangler'").await, ["0"]);
}

#[tokio::test]
async fn slice_of_another_plan_and_copied_databases_are_refused() {
    let cluster = Arc::new(launch());
    let mut setup = Setup::new(Arc::clone(&cluster), "a", SCHEMA).await;
    setup.provision().await.unwrap();
    setup.plan.name = "other".to_owned();
    let codes: Vec<&str> = setup.refused().await.iter().map(|problem| problem.code).collect();
    assert!(codes.contains(&"slice-taken"), "{codes:?}");
    setup.plan.name = "retail".to_owned();
    let admin = connect(&cluster.admin_url()).await;
    admin.batch_execute("CREATE DATABASE copied TEMPLATE monolith_a").await.unwrap();
    let mut databases = setup.databases().await;
    databases.monolith = connect(&cluster.url("copied")).await;
    let design = setup.design(&databases).await;
    assert!(design.refusals().any(|problem| problem.code == "other-database"), "{:?}", design.problems);
    databases.monolith = setup.connect("monolith").await;
    databases.services.insert("orders".to_owned(), setup.connect("monolith").await);
    let design = setup.design(&databases).await;
    assert!(design.refusals().any(|problem| problem.code == "service-is-monolith"), "{:?}", design.problems);
}

#[tokio::test]
async fn two_provisions_at_once_do_not_mix() {
    let setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    let other = setup.connect("orders").await;
    other.batch_execute("SELECT pg_advisory_lock(1398035026, 0)").await.unwrap();
    let error = setup.provision().await.unwrap_err();
    assert!(
        matches!(error, ProvisionError::Busy { database: Database::Service(ref name), .. } if name == "orders"),
        "{error:?}"
    );
    drop(other);
}

const ADOPTED: &str = r#"
    CREATE SCHEMA sales;
    CREATE TYPE sales.status AS ENUM ('Pending', 'Paid');
    CREATE DOMAIN public."Money" AS numeric(12, 2) CHECK (VALUE >= 0);
    CREATE TABLE sales."Orders" ("Id" bigint PRIMARY KEY, "Number" uuid NOT NULL UNIQUE, "CustomerId" bigint,
        "Status" sales.status NOT NULL, "Note" text, "Extra" text);
    CREATE TABLE sales.order_lines (id bigint PRIMARY KEY, order_id bigint NOT NULL, "ProductId" int NOT NULL,
        price public."Money" NOT NULL, qty bigint NOT NULL,
        CONSTRAINT fk FOREIGN KEY (order_id) REFERENCES sales."Orders" ("Id") ON DELETE CASCADE,
        CONSTRAINT fk_number FOREIGN KEY (order_id) REFERENCES sales."Orders" ("Id"));
    CREATE UNIQUE INDEX by_order ON sales.order_lines (order_id, lower("ProductId"::text)) WHERE qty > 0;
    CREATE INDEX plain ON sales.order_lines (qty);
"#;

#[tokio::test]
async fn adopted_tables_lose_what_refuses_rows_and_get_it_back_word_for_word() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let orders = setup.connect("orders").await;
    orders.batch_execute(ADOPTED).await.unwrap();
    let remarked = "COMMENT ON INDEX sales.by_order IS 'by order'; COMMENT ON CONSTRAINT fk ON sales.order_lines IS 'parent';
        COMMENT ON CONSTRAINT \"Orders_Number_key\" ON sales.\"Orders\" IS 'one each'";
    orders.batch_execute(remarked).await.unwrap();
    let set = "ALTER INDEX sales.\"Orders_Number_key\" SET (fillfactor = 70);
        ALTER TABLE sales.\"Orders\" CLUSTER ON \"Orders_Number_key\";
        ALTER TABLE sales.\"Orders\" REPLICA IDENTITY USING INDEX \"Orders_Number_key\";
        ALTER INDEX sales.by_order ALTER COLUMN 2 SET STATISTICS 500";
    orders.batch_execute(set).await.unwrap();
    let told = rows(&orders, &remarks("sales")).await;
    assert_eq!(told.len(), 3, "{told:?}");
    let definitions = "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint \
                       WHERE connamespace = 'sales'::regnamespace \
                       UNION ALL SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'sales' \
                       UNION ALL SELECT relname::text, concat_ws(' ', relreplident, reloptions, indisclustered, indisreplident, \
                           ARRAY(SELECT to_jsonb(a) ->> 'attstattarget' FROM pg_attribute a WHERE attrelid = c.oid \
                               AND relkind = 'i' ORDER BY attnum)) \
                       FROM pg_class c LEFT JOIN pg_index ON indexrelid = c.oid \
                       WHERE relnamespace = 'sales'::regnamespace ORDER BY 1, 2";
    let before = rows(&orders, definitions).await;
    setup.provision().await.unwrap();
    assert_eq!(setup.provision().await.unwrap().steps, [], "a second run changes nothing");
    let left = rows(
        &orders,
        "SELECT conname::text FROM pg_constraint WHERE connamespace = 'sales'::regnamespace AND contype <> 'n' \
         ORDER BY 1",
    )
    .await;
    assert_eq!(left, ["Orders_pkey", "order_lines_pkey"]);
    let identity =
        "SELECT 'identity ' || relreplident::text FROM pg_class WHERE oid = 'sales.\"Orders\"'::regclass";
    assert_eq!(rows(&orders, identity).await, ["identity f"], "one without its index would be none");
    let app = setup.connect_as("orders", "orders_app_a").await;
    let error = error_of(&app, "DELETE FROM sales.order_lines").await;
    assert_eq!(*error.code(), SqlState::READ_ONLY_SQL_TRANSACTION);
    for row in orders.query("SELECT create_sql FROM strangler.deferred ORDER BY id", &[]).await.unwrap() {
        let sql: String = row.get(0);
        orders.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert_eq!(rows(&orders, definitions).await, before);
    assert_eq!(rows(&orders, &remarks("sales")).await, told);
}

#[tokio::test]
async fn adopted_tables_are_guarded_when_partitioned() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let orders = setup.connect("orders").await;
    let partitioned = ADOPTED
        .replace("qty bigint NOT NULL,", "qty bigint NOT NULL) PARTITION BY HASH (id); CREATE TABLE sales.part PARTITION OF sales.order_lines FOR VALUES WITH (MODULUS 1, REMAINDER 0); CREATE TABLE sales.unused (")
        .replace("CONSTRAINT fk FOREIGN KEY (order_id) REFERENCES sales.\"Orders\" (\"Id\") ON DELETE CASCADE,", "a int")
        .replace("CONSTRAINT fk_number FOREIGN KEY (order_id) REFERENCES sales.\"Orders\" (\"Id\"));", ");")
        .replace("CREATE UNIQUE INDEX by_order ON sales.order_lines (order_id, lower(\"ProductId\"::text)) WHERE qty > 0;", "");
    orders.batch_execute(&partitioned).await.unwrap_or_else(|error| panic!("{partitioned}: {error:?}"));
    setup.provision().await.unwrap();
    assert_eq!(setup.provision().await.unwrap().steps, []);
    let row = "(id, order_id, \"ProductId\", price, qty) VALUES (1, 1, 1, 1, 1)";
    for sql in [
        format!("INSERT INTO sales.order_lines {row}"),
        format!("INSERT INTO sales.part {row}"),
        "TRUNCATE sales.order_lines".to_owned(),
        "TRUNCATE sales.part".to_owned(),
    ] {
        assert_eq!(*error_of(&orders, &sql).await.code(), SqlState::READ_ONLY_SQL_TRANSACTION, "{sql}");
    }
    let apply = setup.connect_as("orders", "strangler_apply").await;
    apply.batch_execute(&format!("INSERT INTO sales.order_lines {row}")).await.unwrap();
    apply.batch_execute("UPDATE sales.order_lines SET qty = 2; DELETE FROM sales.order_lines").await.unwrap();
    orders.batch_execute("UPDATE strangler.gate_ordering SET state = 'OPEN'").await.unwrap();
    let done = orders.execute(&format!("INSERT INTO sales.part {row}"), &[]).await.unwrap();
    assert_eq!(done, 1, "an open row trigger lets the row through");
}

#[tokio::test]
async fn every_mismatch_of_an_adopted_table_is_said_at_once() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let orders = setup.connect("orders").await;
    orders
        .batch_execute(
            "CREATE SCHEMA sales; CREATE TABLE sales.order_lines (id int, order_id bigint NOT NULL, \"ProductId\" bigint, \
             price money, qty int, must text NOT NULL);
             CREATE RULE gone AS ON DELETE TO sales.order_lines DO INSTEAD NOTHING;
             ALTER TABLE sales.order_lines ENABLE ALWAYS RULE gone; CREATE RULE quiet AS ON DELETE TO sales.order_lines DO ALSO NOTHING",
        )
        .await
        .unwrap();
    let facts: Vec<String> = setup.refused().await.into_iter().map(|problem| problem.fact).collect();
    for words in [
        "it does not exist",
        "column id is integer, and the monolith's bigint does not fit into it",
        "column price is money",
        "column must is NOT NULL without a default",
        "its rule gone on sales.order_lines is enabled ALWAYS",
        "no primary key or unique index over NOT NULL columns covers exactly (id)",
    ] {
        assert!(facts.iter().any(|fact| fact.contains(words)), "{words}: {facts:#?}");
    }
    assert!(!facts.iter().any(|fact| fact.contains("rule quiet")), "{facts:#?}");
}

#[tokio::test]
async fn a_table_with_a_parent_is_not_adopted_because_writes_through_that_pass_its_gate() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let orders = setup.connect("orders").await;
    let statements = [
        (
            "CREATE SCHEMA sales; CREATE TABLE sales.everything (id bigint) PARTITION BY RANGE (id); \
             CREATE TABLE sales.order_lines PARTITION OF sales.everything DEFAULT",
            "it is a partition of sales.everything, and what is written through that passes the gate",
            "ALTER TABLE \"sales\".\"everything\" DETACH PARTITION \"sales\".\"order_lines\"",
        ),
        (
            "DROP TABLE sales.everything; CREATE TABLE sales.above (id bigint); \
             CREATE TABLE sales.order_lines () INHERITS (sales.above)",
            "it inherits from sales.above, and what is written through that passes the gate",
            "ALTER TABLE \"sales\".\"order_lines\" NO INHERIT \"sales\".\"above\"",
        ),
    ];
    for (made, fact, next) in statements {
        orders.batch_execute(made).await.unwrap();
        let refused = setup.refused().await;
        let told = refused.iter().find(|problem| problem.fact == fact);
        let told = told.unwrap_or_else(|| panic!("{fact}: {refused:#?}"));
        assert!(told.next.contains(next), "{told:?}");
    }
}

#[tokio::test]
async fn adopted_table_with_rows_is_left_as_it_is() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let orders = setup.connect("orders").await;
    orders.batch_execute(ADOPTED).await.unwrap();
    orders
        .batch_execute("INSERT INTO sales.\"Orders\" VALUES (1, gen_random_uuid(), 1, 'Paid', '', '')")
        .await
        .unwrap();
    let error = setup.provision().await.unwrap_err();
    let said =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<tokio_postgres::Error>());
    assert_eq!(
        said.and_then(|e| e.as_db_error()).map(|e| e.message()),
        Some("table sales.Orders is not empty")
    );
    let there =
        "SELECT count(*) FROM pg_constraint WHERE connamespace = 'sales'::regnamespace AND contype = 'f'";
    assert_eq!(rows(&orders, there).await, ["2"]);
}

#[tokio::test]
async fn ordinary_administrators_can_provision_what_they_own() {
    let cluster = Arc::new(launch());
    let setup = Setup::new(Arc::clone(&cluster), "a", SCHEMA).await;
    let root = connect(&cluster.admin_url()).await;
    root.batch_execute(
        "CREATE ROLE dba LOGIN CREATEROLE; ALTER DATABASE monolith_a OWNER TO dba; ALTER DATABASE orders_a OWNER TO dba; \
         ALTER DATABASE products_a OWNER TO dba",
    )
    .await
    .unwrap();
    setup.connect("monolith").await.batch_execute("REASSIGN OWNED BY postgres TO dba").await.unwrap_err();
    let monolith = setup.connect("monolith").await;
    for row in monolith
        .query(
            "SELECT format('ALTER TABLE %s OWNER TO dba', oid::regclass) FROM pg_class \
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
            &[],
        )
        .await
        .unwrap()
    {
        monolith.batch_execute(row.get(0)).await.unwrap();
    }
    let mut databases = setup.databases_as("dba").await;
    let done = run(&setup.plan, &[], &mut databases, (&setup.logins, &author()), &mut |_| {}).await.unwrap();
    let warned = done
        .problems
        .iter()
        .any(|problem| problem.code == "apply-may-not-replicate" && problem.severity == Severity::Warning);
    assert!(warned, "{:?}", done.problems);
    let again = setup.design(&databases).await;
    assert_eq!(again.steps, []);
}

#[tokio::test]
async fn read_login_sees_gates_and_identity() {
    let cluster = Arc::new(launch());
    let mut setup = Setup::new(Arc::clone(&cluster), "a", SCHEMA).await;
    setup.connect("monolith").await.batch_execute("CREATE ROLE reader LOGIN").await.unwrap();
    setup.logins.monolith_read = Some("reader".to_owned());
    setup.provision().await.unwrap();
    assert_eq!(setup.provision().await.unwrap().steps, []);
    let reader = setup.connect_as("monolith", "reader").await;
    let sql = "SELECT state, side FROM strangler.gate_ordering, strangler.slice, strangler.database WHERE slice = 'ordering'";
    assert_eq!(rows(&reader, sql).await, ["OPEN|monolith"]);
}

#[tokio::test]
async fn servers_that_are_copies_of_one_template_are_told_apart() {
    let pair = Pair::launch().await;
    let monolith = pair.monolith().await;
    monolith.batch_execute(SCHEMA).await.unwrap();
    let mut plan = fixture::plan("a");
    plan.slices.remove("catalog");
    let services = [("orders".to_owned(), pair.service().await)].into();
    let mut databases = Databases { monolith, services };
    let logins = Logins::default();
    run(&plan, &[], &mut databases, (&logins, &author()), &mut |_| {}).await.unwrap();
    let again = run(&plan, &[], &mut databases, (&logins, &author()), &mut |_| {}).await.unwrap();
    assert_eq!(again.steps, []);
    let identity = "SELECT system_identifier, database_oid FROM strangler.database";
    let service = databases.services.get("orders").unwrap();
    assert_eq!(rows(&databases.monolith, identity).await, rows(service, identity).await, "the hard case");
}

#[tokio::test]
async fn foreign_key_between_slices_of_an_adopted_service_stays_off() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    setup.plan.services.get_mut("orders").unwrap().ddl = Ddl::Adopt;
    let mut lines = setup.plan.slices["ordering"].clone();
    let orders = lines.tables.remove(0);
    setup.plan.slices.get_mut("ordering").unwrap().tables = vec![orders];
    setup.plan.slices.insert("lines".to_owned(), lines);
    let client = setup.connect("orders").await;
    client.batch_execute(ADOPTED).await.unwrap();
    setup.provision().await.unwrap();
    assert_eq!(setup.provision().await.unwrap().steps, []);
    let waiting = "SELECT kind, object FROM strangler.deferred ORDER BY id";
    assert_eq!(rows(&client, waiting).await, ["index|by_order", "constraint|Orders_Number_key"]);
    let noted = "SELECT slice, detail ->> 'create_sql' FROM strangler.journal WHERE action = 'set aside between slices' \
                 ORDER BY id";
    assert_eq!(
        rows(&client, noted).await,
        [
            "lines|ALTER TABLE \"sales\".\"order_lines\" ADD CONSTRAINT \"fk\" FOREIGN KEY (order_id) \
             REFERENCES sales.\"Orders\"(\"Id\") ON DELETE CASCADE",
            "lines|ALTER TABLE \"sales\".\"order_lines\" ADD CONSTRAINT \"fk_number\" FOREIGN KEY (order_id) \
             REFERENCES sales.\"Orders\"(\"Id\")",
        ]
    );
}

#[tokio::test]
async fn one_slice_can_be_provisioned_alone_and_a_broken_plan_not_at_all() {
    let mut setup = Setup::new(Arc::new(launch()), "a", SCHEMA).await;
    let mut databases = setup.databases().await;
    let only = ["ordering".to_owned()];
    run(&setup.plan, &only, &mut databases, (&setup.logins, &author()), &mut |_| {}).await.unwrap();
    let published = "SELECT pubname::text FROM pg_publication";
    assert_eq!(rows(&databases.monolith, published).await, ["strangler_retail_ordering"]);
    setup.provision().await.unwrap();
    assert_eq!(setup.provision().await.unwrap().steps, []);
    let rule = &mut setup.plan.slices.get_mut("ordering").unwrap().tables[1];
    rule.columns.insert("Nothing".to_owned(), ColumnRule::Drop);
    let codes: Vec<&str> = setup.refused().await.iter().map(|problem| problem.code).collect();
    assert!(codes.contains(&"unknown-column"), "{codes:?}");
}

#[tokio::test]
async fn the_sql_of_a_dry_run_typed_by_hand_leaves_nothing_to_do() {
    let setup = Setup::new(Arc::new(launch()), "hand", SCHEMA).await;
    let mut databases = setup.databases().await;
    for step in setup.design(&databases).await.steps {
        let client = match &step.database {
            Database::Monolith => &databases.monolith,
            Database::Service(name) => &databases.services[name],
        };
        client.batch_execute(&step.text()).await.unwrap();
    }
    let design = setup.design(&databases).await;
    let left: Vec<String> =
        design.steps.iter().map(|step| format!("{} {}", step.purpose, step.object)).collect();
    assert!(left.is_empty() && design.refusals().next().is_none(), "{left:?} {:?}", design.problems);
    migrate::run(&mut databases.monolith).await.expect("a later version can upgrade it");
}
