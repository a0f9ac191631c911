//! Statements whose parameters' types are named: one round trip each, whether the session has a plan for them or not.
//!
//! A server parses and plans a statement each time that it is sent, which takes as long as doing it. What is sent while writers
//! wait is planned before, in sessions that keep plans ([`Session::keep_plans`]).

use std::future::Future;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::connect::Session;

/// A parameter, and its type on the server.
pub type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// What takes statements. A call sends its statement when it is first polled, so what is polled in an order is done in that order.
pub trait Ask: Sync {
    /// All rows.
    ///
    /// # Errors
    /// What the server said.
    fn ask(
        &self,
        sql: &str,
        parameters: &[Typed<'_>],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// The only row.
    ///
    /// # Errors
    /// What the server said; that there was no row, or more than one.
    fn ask_one(&self, sql: &str, parameters: &[Typed<'_>])
    -> impl Future<Output = Result<Row, Error>> + Send;

    /// The only row, or none.
    ///
    /// # Errors
    /// What the server said; that there was more than one.
    fn ask_opt(
        &self,
        sql: &str,
        parameters: &[Typed<'_>],
    ) -> impl Future<Output = Result<Option<Row>, Error>> + Send;

    /// How many rows were changed.
    ///
    /// # Errors
    /// What the server said.
    fn tell(&self, sql: &str, parameters: &[Typed<'_>]) -> impl Future<Output = Result<u64, Error>> + Send;
}

/// Planned each time.
impl Ask for Client {
    async fn ask(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Vec<Row>, Error> {
        self.query_typed(sql, parameters).await
    }

    async fn ask_one(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Row, Error> {
        self.query_typed_one(sql, parameters).await
    }

    async fn ask_opt(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Option<Row>, Error> {
        self.query_typed_opt(sql, parameters).await
    }

    async fn tell(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<u64, Error> {
        self.execute_typed(sql, parameters).await
    }
}

/// By the plan that the session has, if it has one.
impl Ask for Session {
    async fn ask(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Vec<Row>, Error> {
        match plan(self, sql, parameters).await? {
            Some(plan) => self.query(&plan, &values(parameters)).await,
            None => self.query_typed(sql, parameters).await,
        }
    }

    async fn ask_one(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Row, Error> {
        match plan(self, sql, parameters).await? {
            Some(plan) => self.query_one(&plan, &values(parameters)).await,
            None => self.query_typed_one(sql, parameters).await,
        }
    }

    async fn ask_opt(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<Option<Row>, Error> {
        match plan(self, sql, parameters).await? {
            Some(plan) => self.query_opt(&plan, &values(parameters)).await,
            None => self.query_typed_opt(sql, parameters).await,
        }
    }

    async fn tell(&self, sql: &str, parameters: &[Typed<'_>]) -> Result<u64, Error> {
        match plan(self, sql, parameters).await? {
            Some(plan) => self.execute(&plan, &values(parameters)).await,
            None => self.execute_typed(sql, parameters).await,
        }
    }
}

fn values<'a>(parameters: &[Typed<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters.iter().map(|(value, _)| *value).collect()
}

async fn plan(session: &Session, sql: &str, parameters: &[Typed<'_>]) -> Result<Option<Statement>, Error> {
    let types = || parameters.iter().map(|(_, of)| of.clone()).collect::<Vec<_>>();
    session.kept_plan(sql, types).await
}
