//! The reverse slot: made over a replication connection to the service, dropped over an ordinary one.

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::patience::TOLD_EVERY;
use super::{ArmError, Patience, Step, survey};
use crate::cdc::source;
use crate::failpoint;
use crate::lsn::Lsn;
use crate::name::quote_literal;
use crate::postgres::Server;
use crate::postgres::replication::{SlotOptions, create_slot_text};
use crate::provision::Database;
use crate::words;

/// How long the server gets to end a session that reads a slot which is to go, in milliseconds.
const END_WAIT_MS: i64 = 2_000;

/// How often a slot in use is tried: ten times two seconds are enough for any session that can be ended.
const TRIES: u32 = 10;

/// What a new slot is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    /// The stream starts with the first transaction that commits after it.
    pub(super) start: Lsn,
    /// The service's timeline.
    pub(super) timeline: u32,
}

fn options(server_major: u32) -> SlotOptions {
    // From 17 on a standby can take the slot over, when the service is set up for it.
    SlotOptions { temporary: false, failover: server_major >= 17 }
}

pub(super) fn create_text(slot: &str, server_major: u32) -> String {
    format!(
        "-- over a replication connection; waits for every transaction that runs on the server\n{};\n",
        create_slot_text(server_major, slot, options(server_major))
    )
}

pub(super) fn drop_text(slot: &str) -> String {
    format!("{};\n", drop_sql(slot))
}

fn drop_sql(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", quote_literal(slot))
}

/// Makes the slot. One of its name can only be a former attempt of ours, from which nothing was read, so it is dropped
/// first. No transaction of ours is open meanwhile: the new slot waits for every transaction of the service's whole
/// cluster, and the operator is told for whose.
pub(super) async fn create(
    (client, server): (&Client, &Server),
    (step, slot): (&Step, &str),
    patience: Patience,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Made, ArmError> {
    remove(client, &step.database, slot).await?;
    let database = || step.database.clone();
    let mut connection = server.replicate("strangler arm").await?;
    let failed = |source| ArmError::Replication { database: database(), source };
    let options = options(connection.server_major());
    let begun = Instant::now();
    let creating = async {
        let timeline = connection.identify_system().await?.timeline;
        Ok(Made { start: connection.create_slot(slot, options).await?, timeline })
    };
    tokio::pin!(creating);
    loop {
        tokio::select! {
            made = &mut creating => {
                let made = made.map_err(failed)?;
                failpoint::hit("arm-slot-created");
                return Ok(made);
            }
            () = sleep(TOLD_EVERY.min(patience.total)) => {}
        }
        let who = match source::oldest_transaction(client).await {
            Ok(who) => who,
            Err(source) if client.is_closed() => {
                return Err(ArmError::Slot { database: database(), source });
            }
            Err(_) => "somebody who could not be looked up".to_owned(),
        };
        if begun.elapsed() >= patience.total {
            // The server would go on waiting and leave a slot behind.
            remove(client, &step.database, slot).await?;
            return Err(gave_up(step, patience, &who));
        }
        let waited = words::seconds(begun.elapsed().as_secs_f64());
        tell(&format!(
            "waiting because a new replication slot waits for running transactions of the service's server: {who} \
             (waited {waited})"
        ));
    }
}

fn gave_up(step: &Step, patience: Patience, who: &str) -> ArmError {
    ArmError::Waited {
        database: step.database.clone(),
        purpose: step.purpose,
        object: step.object.clone(),
        seconds: patience.total.as_secs(),
        who: format!("it waits for running transactions of the whole server: {who}"),
        next: "let that transaction end; then type the same command again, with a longer --wait if need be"
            .to_owned(),
    }
}

/// Drops a slot, and ends the session that uses it. Does nothing when there is none.
pub(super) async fn remove(client: &Client, database: &Database, slot: &str) -> Result<(), ArmError> {
    let Database::Service(service) = database else { return Ok(()) };
    let failed =
        |source| ArmError::Read { database: database.clone(), what: "its replication slots", source };
    let mut last = 0;
    for _ in 0..TRIES {
        let Some(facts) = survey::read_slot(client, service, slot).await? else { return Ok(()) };
        if let Some(pid) = facts.active_pid {
            last = pid;
            let ended = client.execute("SELECT pg_terminate_backend($1, $2)", &[&pid, &END_WAIT_MS]).await;
            if let Err(error) = ended {
                tracing::warn!(
                    pid,
                    error = crate::cdc::mirror::chain_of(&error),
                    "the session that uses the slot could not be ended"
                );
                sleep(TOLD_EVERY).await;
            }
            continue;
        }
        match client.batch_execute(&drop_sql(slot)).await {
            Ok(()) => return Ok(()),
            // Whoever was ended may have been quicker, or a reader come back.
            Err(error) if matches!(crate::postgres::sqlstate::code(&error), Some("42704" | "55006")) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(ArmError::SlotInUse { database: database.clone(), slot: slot.to_owned(), pid: last })
}
