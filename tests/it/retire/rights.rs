//! What keeps rights from being taken away exactly, or from having an effect, and whoever changes them at the same time.

use std::collections::BTreeSet;

use fastrand::Rng;
use strangler::cluster::Cluster;
use tokio_postgres::Client;

use super::{entries, others, refused, revoke, rights, ripe, take, token};
use crate::support::binary::{Ended, flat};
use crate::support::cluster::{Pair, connect};
use crate::support::split::Split;
use crate::support::toll;
use crate::support::wait::{SOON, until};

/// What was said, without the breaks of its lines.
fn said(ended: &Ended) -> String {
    flat(&ended.stderr)
}

/// One statement of an owner about a right on his table: any kind of right, of anybody.
fn random_statement(random: &mut Rng) -> String {
    let (table, owner, columns) = random
        .choice([
            ("accounts", "retail_owner", &["id", "balance", "\"odd \"\"name\""][..]),
            ("moves", "retail_owner", &["id", "amount"]),
            ("moves_1", "retail_owner", &["id", "amount"]),
            ("moves_2", "steward", &["id", "amount"]),
        ])
        .unwrap();
    let role = random.choice(["PUBLIC", "shop", "clerk", "\"odd \"\"role\"", owner, "gone"]).unwrap();
    let takes = random.u8(..4) == 0;
    let what = if takes && role == owner {
        // What checks of foreign keys need, an owner must not have by way of PUBLIC alone.
        "TRUNCATE, REFERENCES, TRIGGER".to_owned()
    } else if random.bool() {
        let privilege = random.choice(["SELECT", "INSERT", "UPDATE", "REFERENCES"]).unwrap();
        format!("{privilege} ({})", random.choice(columns).unwrap())
    } else {
        let all = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "ALL"];
        (*random.choice(&all).unwrap()).to_owned()
    };
    let sql = if takes {
        format!("REVOKE {what} ON {table} FROM {role}")
    } else {
        let option = if role != "PUBLIC" && random.bool() { " WITH GRANT OPTION" } else { "" };
        format!("GRANT {what} ON {table} TO {role}{option}")
    };
    format!("SET ROLE {owner}; {sql}; RESET ROLE;")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn whatever_rights_there_are_come_back_exactly() {
    let (mut split, monolith, _service, mirror) = ripe().await;
    let seed = toll::seed();
    let mut random = Rng::with_seed(seed);
    for round in 0..5 {
        let statements: Vec<String> = (0..15).map(|_| random_statement(&mut random)).collect();
        monolith.batch_execute(&statements.concat()).await.unwrap();
        let before = rights(&monolith).await;
        take(&split);
        let said = format!("seed {seed}, round {round}: {statements:#?}\n{before}");
        assert_eq!(others(&monolith).await, BTreeSet::new(), "{said}");
        let back = split.run("unretire", &[]);
        assert_eq!(back.exit, Some(0), "{said}{}", back.page());
        assert_eq!(rights(&monolith).await, before, "{said}");
    }

    // The service is needed for its ledger alone, which the next command tells.
    let before = rights(&monolith).await;
    take(&split);
    split.lead("DEPLOY", "postgres://nobody@127.0.0.1:1/service");
    let back = split.run("unretire", &[]);
    assert_eq!(back.exit, Some(0), "{}", back.page());
    assert!(said(&back).contains("service service can't be reached"), "{}", back.page());
    assert_eq!(rights(&monolith).await, before);
    assert_eq!(entries(&split, "unretire").len(), 5);
    let link = split.pair.service.url_as("orders_deploy", "", Pair::SERVICE);
    split.lead("DEPLOY", &link);
    assert!(said(&split.run("unretire", &[])).contains("nothing is retired"));
    assert_eq!(entries(&split, "unretire").len(), 6);
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_could_not_be_given_back_or_would_stop_nobody_is_refused_with_what_to_type() {
    let (split, monolith, _service, mirror) = ripe().await;
    monolith
        .batch_execute(
            "SET ROLE shop; GRANT SELECT ON accounts TO clerk WITH GRANT OPTION; GRANT UPDATE (balance) ON accounts TO gone;
             SET ROLE clerk; GRANT SELECT ON accounts TO steward; RESET ROLE;
             CREATE VIEW rich AS SELECT id FROM accounts;
             CREATE TABLE kept (id int PRIMARY KEY, account int REFERENCES accounts); ALTER TABLE kept OWNER TO shop;",
        )
        .await
        .unwrap();
    let shown = revoke(&split, &[]);
    refused(&shown, &["right-passed-on", "retire-view", "retire-foreign-key"]);
    for words in
        ["clerk has SELECT from shop", "steward has SELECT from clerk", "gone has UPDATE (balance) from shop"]
    {
        assert!(said(&shown).contains(words), "{words}: {}", shown.page());
    }
    // As it says, word for word.
    let (_, next) = shown.stderr.split_once("as retail_owner, or a superuser: ").unwrap();
    let sql = next.lines().next().unwrap();
    monolith.batch_execute(&format!("{sql} DROP VIEW rich")).await.unwrap();
    let shown = revoke(&split, &[]);
    assert_eq!(shown.exit, Some(0), "{sql}\n{}", shown.page());
    assert!(said(&shown).contains("it is checked with the rights of the tables' owners"), "{}", shown.page());
    let before = rights(&monolith).await;
    take(&split);
    // An owner's check goes on without a right of whoever writes.
    monolith.batch_execute("SET ROLE shop; INSERT INTO kept VALUES (1, 7); RESET ROLE").await.unwrap();
    assert_eq!(split.run("unretire", &[]).exit, Some(0));
    assert_eq!(rights(&monolith).await, before);

    // A link, or an owner, that reads by way of everybody's right would stand still.
    monolith
        .batch_execute(
            "REVOKE ALL ON accounts FROM shop_read; GRANT SELECT ON accounts TO PUBLIC; REVOKE SELECT ON accounts FROM retail_owner",
        )
        .await
        .unwrap();
    let shown = revoke(&split, &[]);
    refused(&shown, &["link-loses-right", "owner-loses-right"]);
    let next = "as retail_owner, or a superuser: GRANT SELECT ON TABLE \"public\".\"accounts\" TO";
    // The owner, the link that reads, and the administrator's, which has the owner's rights.
    assert_eq!(said(&shown).matches(next).count(), 3, "{}", shown.page());
    assert_eq!(rights(&monolith).await.matches("of PUBLIC").count(), 2, "nothing was done");
    assert_eq!(split.run("retire", &["--stage", "revoke", "--approved-by", ""]).exit, Some(2));

    // An owner as whom the administrator can't act, and a role that was met of late and needs no right.
    monolith
        .batch_execute(
            "GRANT SELECT ON accounts TO shop_read, retail_owner; REVOKE steward FROM shop_admin;
             CREATE ROLE readers IN ROLE pg_read_all_data; CREATE ROLE bi LOGIN IN ROLE readers;
             INSERT INTO strangler.table_user VALUES ('one', 'accounts', 'session', 'bi', '', '', 0, '', 1, now(), now() + interval '1 h')",
        )
        .await
        .unwrap();
    let shown = revoke(&split, &[]);
    refused(&shown, &["not-owner", "role-unstoppable", "still-used"]);
    for words in [
        "GRANT \"steward\" TO \"shop_admin\";",
        "role bi is a member of pg_read_all_data, by way of readers, and was met using them of late",
        "move it to the service, or: REVOKE \"readers\" FROM \"bi\";",
        "the plan names no app_roles",
    ] {
        assert!(said(&shown).contains(words), "{words}: {}", shown.page());
    }

    application(&split, &monolith).await;
    mirror.stop();
}

/// The application's roles are refused where they own the tables or need no right on them.
async fn application(split: &Split, monolith: &Client) {
    split.change_plan("monolith: { admin", "monolith: { app_roles: [shop, clerk], admin");
    monolith
        .batch_execute(
            "ALTER TABLE accounts OWNER TO shop; GRANT pg_read_all_data TO clerk; GRANT retail_owner TO shop",
        )
        .await
        .unwrap();
    let shown = revoke(split, &[]);
    refused(&shown, &["app-role-unstoppable"]);
    for words in [
        "role shop owns tables of it",
        "role clerk is a member of pg_read_all_data",
        "REVOKE \"pg_read_all_data\" FROM \"clerk\";",
    ] {
        assert!(said(&shown).contains(words), "{words}: {}", shown.page());
    }
}

/// Somebody else's session, in a transaction that has changed rights.
pub(super) async fn granting(split: &Split, sql: &str) -> Client {
    let other = connect(&split.pair.monolith_url()).await;
    other.batch_execute(&format!("SET application_name = 'granting'; BEGIN; {sql}")).await.unwrap();
    other
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: make soak"]
async fn what_is_granted_at_the_same_time_is_neither_lost_nor_taken_unseen() {
    let (split, monolith, _service, mirror) = ripe().await;
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name IN ('strangler retire', 'strangler unretire') \
        AND wait_event_type = 'Lock')";
    let waiting = async || {
        until("the stage waits", SOON, async || {
            monolith.query_one(waits, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    };
    // On a table, and on a column that has rights already.
    for sql in ["GRANT DELETE ON moves TO shop", "GRANT UPDATE (balance) ON accounts TO shop"] {
        let shown = token(&revoke(&split, &[]));
        let other = granting(&split, sql).await;
        let stage = split.start("retire", &["--stage", "revoke", "--confirm", &shown]);
        waiting().await;
        other.batch_execute("COMMIT").await.unwrap();
        refused(&stage.ended(), &[]);
    }
    // The first right on a column, once the rights have been read: nothing holds that, and REVOKE would take it as well.
    monolith
        .batch_execute(
            "CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                IF current_query() !~ 'GRANT OPTION' THEN PERFORM pg_advisory_xact_lock(7); END IF; END $$;
             CREATE EVENT TRIGGER hold ON ddl_command_start WHEN TAG IN ('REVOKE') EXECUTE FUNCTION hold();",
        )
        .await
        .unwrap();
    let shown = token(&revoke(&split, &[]));
    let other = granting(&split, "SELECT pg_advisory_xact_lock(7)").await;
    let stage = split.start("retire", &["--stage", "revoke", "--confirm", &shown]);
    waiting().await;
    monolith.batch_execute("GRANT UPDATE (\"odd \"\"name\") ON accounts TO shop").await.unwrap();
    other.batch_execute("COMMIT").await.unwrap();
    refused(&stage.ended(), &[]);
    monolith
        .batch_execute(
            "CREATE OR REPLACE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not on Fridays'; END $$",
        )
        .await
        .unwrap();
    let failed = revoke(&split, &[]);
    assert_eq!(failed.exit, Some(5), "{}", failed.page());
    for words in ["failed as retail_owner (not on Fridays)", "solve the cause, then type it again"] {
        assert!(said(&failed).contains(words), "{words}: {}", failed.page());
    }
    monolith.batch_execute("DROP EVENT TRIGGER hold; DROP FUNCTION hold").await.unwrap();
    let before = rights(&monolith).await;
    assert!(before.contains("accounts (odd \"name) UPDATE of shop"), "{before}");
    assert!(before.contains("moves DELETE of shop"), "{before}");
    assert!(before.contains("accounts (balance) UPDATE of shop"), "{before}");

    // Who waits too long says for whom.
    let shown = token(&revoke(&split, &[]));
    let other = granting(&split, "GRANT TRUNCATE ON moves TO clerk").await;
    let ended = revoke(&split, &["--confirm", &shown]);
    assert_eq!(ended.exit, Some(4), "{}", ended.page());
    assert!(said(&ended).contains("(granting)"), "{}", ended.page());
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(rights(&monolith).await, before, "nothing was done");

    // Giving back waits as well, and what is granted meanwhile stays.
    take(&split);
    let other = granting(&split, "GRANT DELETE ON accounts TO clerk").await;
    let back = split.start("unretire", &[]);
    waiting().await;
    other.batch_execute("COMMIT").await.unwrap();
    let ended = back.ended();
    assert_eq!(ended.exit, Some(0), "{}", ended.page());
    monolith.batch_execute("REVOKE DELETE ON accounts FROM clerk").await.unwrap();
    assert_eq!(rights(&monolith).await, before);
    mirror.stop();
}
