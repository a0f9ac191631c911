//! The servers that the demo plays on: one for the monolith and one for each service, with an empty database each.

use tokio::task::{JoinError, spawn_blocking};
use tokio_postgres::{Client, Config, NoTls};

use super::{RETAIL_DATA_SQL, RETAIL_SCHEMA_SQL};
use crate::cluster::{Cluster, ClusterError, LocalCluster, Options};
use crate::name::quote_ident;

/// A database of the play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Service that it belongs to, by its name in the plan; `None` for the monolith.
    pub service: Option<&'static str>,
    /// Database name.
    pub database: &'static str,
}

const MONOLITH: Place = Place { service: None, database: "RetailMonolith" };

/// The monolith and its services, as the architecture record names them.
pub const PLACES: [Place; 7] = [
    MONOLITH,
    Place { service: Some("products"), database: "ProductsDB" },
    Place { service: Some("inventory"), database: "InventoryDB" },
    Place { service: Some("orders"), database: "OrdersDB" },
    Place { service: Some("carts"), database: "CartsDB" },
    Place { service: Some("checkout"), database: "CheckoutDB" },
    Place { service: Some("payments"), database: "PaymentsDB" },
];

/// The stage could not be set.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A server did not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A database refused something.
    #[error("{what} in database {database}")]
    Sql {
        /// What was done, as a bare verb phrase.
        what: &'static str,
        /// Where.
        database: &'static str,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// The task that handles a server broke off.
    #[error("handle a server")]
    Task(#[from] JoinError),
    /// The monolith's server is not up.
    #[error("the act needs the monolith's server, which the first act starts")]
    NoMonolith,
}

/// What was loaded into the monolith.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Rows of all tables.
    pub rows: i64,
    /// Tables.
    pub tables: i64,
    /// Foreign keys.
    pub foreign_keys: i64,
}

/// The servers that are up. Dropping it removes them with their data.
#[derive(Debug, Default)]
pub struct Stage {
    servers: Vec<(Place, LocalCluster)>,
}

impl Stage {
    /// Starts a server and creates the place's database on it.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn open(&mut self, place: Place) -> Result<(), StageError> {
        let cluster = spawn_blocking(|| LocalCluster::launch(Options::default())).await??;
        let failed =
            |source| StageError::Sql { what: "create the database", database: place.database, source };
        let admin = connect(&cluster.admin_url()).await.map_err(failed)?;
        admin
            .batch_execute(&format!("CREATE DATABASE {}", quote_ident(place.database)))
            .await
            .map_err(failed)?;
        self.servers.push((place, cluster));
        Ok(())
    }

    /// Creates the retail monolith's tables and rows.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn load(&self) -> Result<Loaded, StageError> {
        let failed = |source| StageError::Sql { what: "load the shop", database: MONOLITH.database, source };
        let client = connect(&self.monolith()?.url(MONOLITH.database)).await.map_err(failed)?;
        client.batch_execute(RETAIL_SCHEMA_SQL).await.map_err(failed)?;
        client.batch_execute(RETAIL_DATA_SQL).await.map_err(failed)?;
        // The data end with ANALYZE, which has counted tables of this size exactly.
        let counts = "SELECT (SELECT sum(reltuples)::bigint FROM pg_class
                              WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace),
                             (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'),
                             (SELECT count(*) FROM pg_constraint WHERE contype = 'f')";
        let row = client.query_one(counts, &[]).await.map_err(failed)?;
        let count = |index: usize| row.try_get(index).map_err(failed);
        Ok(Loaded { rows: count(0)?, tables: count(1)?, foreign_keys: count(2)? })
    }

    /// How the application connects to the monolith.
    ///
    /// # Errors
    /// [`StageError::NoMonolith`].
    pub fn monolith_config(&self) -> Result<Config, StageError> {
        let failed = |source| StageError::Sql { what: "read the link", database: MONOLITH.database, source };
        self.monolith()?.url(MONOLITH.database).parse().map_err(failed)
    }

    /// Commands that lead into each database, through the unix socket and so without a password.
    #[must_use]
    pub fn psql_lines(&self) -> Vec<String> {
        let line = |(place, cluster): &(Place, LocalCluster)| {
            format!("psql '{}'", cluster.socket_url(place.database))
        };
        self.servers.iter().map(line).collect()
    }

    /// Stops the servers and removes their data.
    ///
    /// # Errors
    /// [`StageError::Task`].
    pub async fn close(self) -> Result<(), StageError> {
        Ok(spawn_blocking(|| drop(self)).await?)
    }

    fn monolith(&self) -> Result<&LocalCluster, StageError> {
        let found = self.servers.iter().find(|(place, _)| *place == MONOLITH);
        found.map(|(_, cluster)| cluster).ok_or(StageError::NoMonolith)
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // The connection ends with its client; what went wrong on it comes out of the client's calls.
    tokio::spawn(connection);
    Ok(client)
}
