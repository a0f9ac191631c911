//! The servers that the demo plays on: one for the monolith and one for each service, with an empty database each.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tokio::task::{JoinError, spawn_blocking};
use tokio_postgres::{Client, Config, NoTls};

use super::links::Links;
use super::operator::PLAN_PATH;
use super::{RETAIL_DATA_SQL, RETAIL_SCHEMA_SQL, plan_text, roles};
use crate::cluster::{self, Cluster, ClusterError, LocalCluster, Options};
use crate::name::quote_ident;
use crate::plan::Plan;
use crate::postgres::connect::APPLY_ROLE;

/// What lets a superuser past the gates, as a statement.
pub(super) const AS_MIRROR: &str = "SET SESSION AUTHORIZATION strangler_apply";

/// A database of the play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Service that it belongs to, by its name in the plan; `None` for the monolith.
    pub service: Option<&'static str>,
    /// Database name.
    pub database: &'static str,
}

/// The monolith's place.
pub(super) const MONOLITH: Place = Place { service: None, database: "RetailMonolith" };

/// The place of the order service.
pub(super) const ORDERS: Place = Place { service: Some("orders"), database: "OrdersDB" };

/// The monolith and its services, as the architecture record names them.
pub const PLACES: [Place; 7] = [
    MONOLITH,
    Place { service: Some("products"), database: "ProductsDB" },
    Place { service: Some("inventory"), database: "InventoryDB" },
    ORDERS,
    Place { service: Some("carts"), database: "CartsDB" },
    Place { service: Some("checkout"), database: "CheckoutDB" },
    Place { service: Some("payments"), database: "PaymentsDB" },
];

impl Place {
    /// What it is called on the stage.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.service.unwrap_or("monolith")
    }
}

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
    /// The operator's folder could not be filled.
    #[error("write {}", path.display())]
    Folder {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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
        // Twice the plan's wal_budget, as README.md recommends.
        let options = Options::default().set("max_slot_wal_keep_size", "40GB");
        let cluster = spawn_blocking(|| LocalCluster::launch(options)).await??;
        let failed = sql_failed("create the database", place);
        let admin = connect(&cluster.admin_url()).await.map_err(failed)?;
        let create = format!("CREATE DATABASE {}", quote_ident(place.database));
        admin.batch_execute(&create).await.map_err(failed)?;
        self.servers.push((place, cluster));
        Ok(())
    }

    /// Creates the retail monolith's roles, tables and rows. Gives how the application logs in.
    ///
    /// # Errors
    /// [`StageError`].
    pub async fn load(&self) -> Result<(Loaded, Config), StageError> {
        let failed = sql_failed("load the shop", MONOLITH);
        let cluster = self.server(MONOLITH)?;
        let client = connect(&cluster.url(MONOLITH.database)).await.map_err(failed)?;
        run(&client, &roles::of_the_application()).await.map_err(failed)?;
        let link = self.log_in(&client, MONOLITH, roles::RETAIL_APP).await?;
        let owner = quote_ident(roles::RETAIL_OWNER);
        let schema = format!("SET ROLE {owner};\n{RETAIL_SCHEMA_SQL};\nRESET ROLE");
        client.batch_execute(&schema).await.map_err(failed)?;
        client.batch_execute(RETAIL_DATA_SQL).await.map_err(failed)?;
        // The data end with ANALYZE, which has counted tables of this size exactly.
        let counts = "SELECT (SELECT sum(reltuples)::bigint FROM pg_class
                              WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace),
                             (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'),
                             (SELECT count(*) FROM pg_constraint WHERE contype = 'f')";
        let row = client.query_typed_one(counts, &[]).await.map_err(failed)?;
        let count = |index: usize| row.try_get(index).map_err(failed);
        let loaded = Loaded { rows: count(0)?, tables: count(1)?, foreign_keys: count(2)? };
        Ok((loaded, link.parse().map_err(failed)?))
    }

    /// What an administrator types at a place before the journey.
    ///
    /// # Errors
    /// [`StageError::NoMonolith`], when its server is not up.
    pub fn role_statements(&self, place: Place, plan: &Plan) -> Result<Vec<String>, StageError> {
        let version = self.server(place)?.version_num();
        Ok(match place.service.and_then(|name| plan.services.get_key_value(name)) {
            Some((name, service)) => roles::of_a_service(name, service, place.database, version),
            None => roles::of_the_monolith(place.database, version),
        })
    }

    /// Creates the roles of the plan's links everywhere, gives them passwords, and gives the links.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) async fn make_roles(&self, plan: &Plan) -> Result<Links, StageError> {
        let mut links = Links::default();
        for (place, cluster) in &self.servers {
            let failed = sql_failed("create the roles", *place);
            let client = connect(&cluster.url(place.database)).await.map_err(failed)?;
            run(&client, &self.role_statements(*place, plan)?).await.map_err(failed)?;
            for (link, role) in link_roles(*place) {
                let name = format!("{}_{link}_URL", place.label().to_uppercase());
                links.set(name, self.log_in(&client, *place, &role).await?);
            }
        }
        Ok(links)
    }

    /// Makes the folder in which the operator types: it has the plan, and the links as a shell reads them. It lies in
    /// the monolith's folder and goes away with that, whatever happens to us.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) fn folder(&self, links: &Links) -> Result<PathBuf, StageError> {
        let folder = self.server(MONOLITH)?.dir().join("operator");
        let plan = folder.join(PLAN_PATH);
        let plans = plan.parent().unwrap_or(&folder);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StageError::Folder { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(plans).map_err(failed(plans))?;
        fs::write(&plan, plan_text()).map_err(failed(&plan))?;
        let file = folder.join("links.sh");
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut open| open.write_all(links.shell_text().as_bytes()))
            .map_err(failed(&file))?;
        Ok(folder)
    }

    /// Changes rows of a place behind everybody's back, as the one role that its gates let through.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) async fn meddle(&self, place: Place, statements: &[&str]) -> Result<(), StageError> {
        let failed = sql_failed("change rows by hand", place);
        let admin = connect(&self.server(place)?.url(place.database)).await.map_err(failed)?;
        let all = format!("{AS_MIRROR}; {}", statements.join("; "));
        admin.batch_execute(&all).await.map_err(failed)
    }

    /// What an administrator of a place types.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) async fn administer(&self, place: Place, statement: &str) -> Result<(), StageError> {
        let failed = sql_failed("administer", place);
        let admin = connect(&self.server(place)?.url(place.database)).await.map_err(failed)?;
        admin.batch_execute(statement).await.map_err(failed)
    }

    /// Creates one more database on the server of a place. Gives the administrator's link to it.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) async fn create_database(&self, place: Place, database: &str) -> Result<String, StageError> {
        self.administer(place, &format!("CREATE DATABASE {}", quote_ident(database))).await?;
        Ok(self.server(place)?.url(database))
    }

    /// How a service's application logs in, after giving its role a password.
    ///
    /// # Errors
    /// [`StageError`].
    pub(super) async fn application(&self, place: Place, role: &str) -> Result<Config, StageError> {
        let failed = sql_failed("log in as the service", place);
        let admin = connect(&self.server(place)?.url(place.database)).await.map_err(failed)?;
        self.log_in(&admin, place, role).await?.parse().map_err(failed)
    }

    /// Commands that lead into each database as its superuser, through the unix socket and so without a password.
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

    /// Gives the role a password and returns the link with which it logs in from then on.
    async fn log_in(&self, client: &Client, place: Place, role: &str) -> Result<String, StageError> {
        let password = cluster::random_password()?;
        let failed = sql_failed("set a password", place);
        client.batch_execute(&roles::password(role, &password)).await.map_err(failed)?;
        Ok(self.server(place)?.url_as(role, &password, place.database))
    }

    fn server(&self, place: Place) -> Result<&LocalCluster, StageError> {
        let found = self.servers.iter().find(|(other, _)| *other == place);
        found.map(|(_, cluster)| cluster).ok_or(StageError::NoMonolith)
    }
}

/// The links of the plan into a place, by the middle of their variable's name, and who logs in through each.
fn link_roles(place: Place) -> Vec<(&'static str, String)> {
    let apply = ("APPLY", APPLY_ROLE.to_owned());
    match place.service {
        None => vec![
            ("ADMIN", roles::MONOLITH_ADMIN.to_owned()),
            ("READ", roles::MONOLITH_READ.to_owned()),
            apply,
        ],
        Some(service) => vec![("ADMIN", roles::deploy(service)), apply],
    }
}

fn sql_failed(what: &'static str, place: Place) -> impl Fn(tokio_postgres::Error) -> StageError + Copy {
    move |source| StageError::Sql { what, database: place.database, source }
}

async fn run(client: &Client, statements: &[String]) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&statements.join(";\n")).await
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // The connection ends with its client; what went wrong on it comes out of the client's calls.
    tokio::spawn(connection);
    Ok(client)
}
