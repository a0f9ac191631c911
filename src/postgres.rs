//! PostgreSQL as seen from the client's side of a socket: sessions, the replication protocol, the messages of the
//! logical stream, and what an error of the server means.
//!
//! [`connect::Server`] is one way into one database and makes both kinds of connection: a [`connect::Session`] for
//! SQL and a [`replication::Connection`] for slots and the stream. Both read their link in the same way (`link`),
//! dial in the same way (`wire`) and hold the same opinion of certificates (`tls`).

pub mod ask;
pub mod clocks;
pub mod collations;
pub mod column_types;
pub mod connect;
pub mod equality;
pub mod firing;
pub mod inheritance;
pub mod introspect;
pub mod keyed;
mod link;
pub(crate) mod partitions;
pub mod pgoutput;
pub mod places;
pub mod replication;
pub mod sqlstate;
pub mod stand_ins;
pub mod statements_seen;
mod tls;
pub mod type_trees;
mod wire;

pub use connect::{ConnectError, Server, Session, SessionRole};
