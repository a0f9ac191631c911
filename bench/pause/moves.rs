//! The ways to move the right to write: strangler's, and two that are made by hand over native logical replication.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::{Duration, Instant};

use strangler::cdc::source::{MARKER_PREFIX, emit, marker_content};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, NoTls};

/// The role of the writers.
const RIGHTS: &str = "INSERT, UPDATE, DELETE ON accounts, orders";

/// Between two looks at a position.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// A drain that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) enum Way {
    /// `strangler flip`.
    Strangler { program: String, plan: String },
    /// LOCK TABLE, wait until the subscriber has everything, GRANT there, REVOKE here, COMMIT.
    Lock,
    /// REVOKE, end every session of the writers, wait, GRANT there.
    Revoke,
}

pub(crate) struct Mover {
    way: Way,
    /// The monolith in which a transaction is held, and the one that looks; then the service.
    acting: Client,
    looking: Client,
    service: Client,
}

pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Mover {
    pub(crate) async fn new(
        way: Way,
        [monolith, service]: &[String; 2],
    ) -> Result<Self, tokio_postgres::Error> {
        let acting = connect(monolith).await?;
        Ok(Self { way, acting, looking: connect(monolith).await?, service: connect(service).await? })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.way {
            Way::Strangler { .. } => "strangler",
            Way::Lock => "lock",
            Way::Revoke => "revoke",
        }
    }

    /// The SQLSTATEs that writers are told to expect of this way.
    pub(crate) fn announced(&self) -> &'static [&'static str] {
        match self.way {
            Way::Strangler { .. } => &["25006"],
            Way::Lock => &["42501"],
            Way::Revoke => &["42501", "57P01", "broken"],
        }
    }

    /// Only strangler has a way back; by hand it is one way, and what was written there is left behind.
    pub(crate) fn goes_back(&self) -> bool {
        matches!(self.way, Way::Strangler { .. })
    }

    /// Moves the right to write; gives what the mover measured itself, as JSON.
    pub(crate) async fn move_to(&self, side: usize) -> Result<String, Box<dyn Error>> {
        let begun = Instant::now();
        match &self.way {
            Way::Strangler { program, plan } => return flip(program, plan, side).await,
            Way::Lock => {
                self.acting
                    .batch_execute("BEGIN; LOCK TABLE accounts, orders IN SHARE ROW EXCLUSIVE MODE")
                    .await?;
                self.drained().await?;
                self.open_service().await?;
                self.acting.batch_execute(&format!("REVOKE {RIGHTS} FROM app; COMMIT")).await?;
            }
            Way::Revoke => {
                self.acting.batch_execute(&format!("REVOKE {RIGHTS} FROM app")).await?;
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE usename = 'app' AND datname = current_database()";
                self.acting.execute(end, &[]).await?;
                let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle' \
                            AND datname = current_database() AND xact_start < now()";
                while self.acting.query_one(left, &[]).await?.get::<_, i64>(0) > 0 {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                self.drained().await?;
                self.open_service().await?;
            }
        }
        Ok(format!("{{\"pause_ms\": {:.2}}}", begun.elapsed().as_secs_f64() * 1000.0))
    }

    /// By hand there is no way back: the monolith is opened again, with ids ahead of what the service gave out.
    pub(crate) async fn take_back(&self) -> Result<(), tokio_postgres::Error> {
        self.service.batch_execute(&format!("REVOKE {RIGHTS} FROM app")).await?;
        let last: i64 = self.service.query_one("SELECT last_value FROM orders_id_seq", &[]).await?.get(0);
        self.acting.execute("SELECT setval('orders_id_seq', $1)", &[&(last + 1000)]).await?;
        self.acting.batch_execute(&format!("GRANT {RIGHTS} TO app")).await
    }

    async fn open_service(&self) -> Result<(), tokio_postgres::Error> {
        let last: i64 = self.looking.query_one("SELECT last_value FROM orders_id_seq", &[]).await?.get(0);
        self.service.execute("SELECT setval('orders_id_seq', $1)", &[&(last + 1000)]).await?;
        self.service.batch_execute(&format!("GRANT {RIGHTS} TO app")).await
    }

    /// The subscriber has replayed everything that is in the log now.
    async fn drained(&self) -> Result<(), Box<dyn Error>> {
        let position: PgLsn = self.looking.query_one("SELECT pg_current_wal_lsn()", &[]).await?.get(0);
        let sql = "SELECT coalesce(bool_and(replay_lsn >= $1), false) FROM pg_stat_replication WHERE application_name = 'bench'";
        let begun = Instant::now();
        while !self.looking.query_one(sql, &[&position]).await?.get::<_, bool>(0) {
            if begun.elapsed() > PATIENCE {
                return Err("the subscriber did not catch up".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// How far the copy is behind: as long as it takes until it has what is in the log now.
    pub(crate) async fn behind(&self) -> Result<Duration, Box<dyn Error>> {
        let begun = Instant::now();
        match self.way {
            Way::Strangler { .. } => self.mirrored().await?,
            Way::Lock | Way::Revoke => self.drained().await?,
        }
        Ok(begun.elapsed())
    }

    /// The mirrors of both directions have noted the end of the log that they read.
    async fn mirrored(&self) -> Result<(), Box<dyn Error>> {
        for (source, target, direction) in
            [(&self.acting, &self.service, "forward"), (&self.service, &self.acting, "reverse")]
        {
            let position: PgLsn = source.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await?.get(0);
            // A marker is what makes a mirror note its position at once; without one it takes its time.
            emit(source, MARKER_PREFIX, &marker_content("bench", "behind")).await?;
            let begun = Instant::now();
            let sql = "SELECT applied_lsn >= $1 FROM strangler.stream WHERE dir = $2";
            while !target.query_one(sql, &[&position, &direction]).await?.get::<_, bool>(0) {
                if begun.elapsed() > PATIENCE {
                    return Err("the mirror did not catch up".into());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Acknowledged writes that are not there exactly once: on both sides, for the way that has a way back; on either, by hand.
    pub(crate) async fn lost(&self, acknowledged: &[String]) -> Result<usize, Box<dyn Error>> {
        let both = self.goes_back();
        if both {
            self.mirrored().await?;
        }
        let mut times: BTreeMap<String, BTreeSet<(usize, i64)>> = BTreeMap::new();
        for (place, client) in [&self.acting, &self.service].into_iter().enumerate() {
            for row in client.query("SELECT note, id FROM orders", &[]).await? {
                times.entry(row.get(0)).or_default().insert((if both { place } else { 0 }, row.get(1)));
            }
        }
        let wanted = if both { 2 } else { 1 };
        Ok(acknowledged
            .iter()
            .filter(|note| times.get(*note).is_none_or(|there| there.len() != wanted))
            .count())
    }
}

/// One flip by the command line; what it says of itself on one line.
async fn flip(program: &str, plan: &str, side: usize) -> Result<String, Box<dyn Error>> {
    let mut command = tokio::process::Command::new(program);
    command.args(["flip", plan, "--format", "json", "--accept-no-evidence", "a benchmark"]);
    if side == 0 {
        command.arg("--back");
    }
    let begun = Instant::now();
    let output = loop {
        let output = command.output().await?;
        if output.status.success() {
            break output;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // A mirror that lags for a moment, on a machine that does other work, is no pause: nobody was held.
        if !said.contains("(mirror-lags)") || begun.elapsed() > PATIENCE {
            return Err(said.into_owned().into());
        }
    };
    let document: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let slice = document.pointer("/slices/0").ok_or("no slice in the document")?;
    let steps: serde_json::Map<String, serde_json::Value> = slice
        .get("steps")
        .and_then(serde_json::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|step| Some((step.get("step")?.as_str()?.to_owned(), step.get("took_ms")?.clone())))
        .collect();
    Ok(serde_json::json!({ "pause_ms": slice.get("pause_ms"), "steps": steps }).to_string())
}
