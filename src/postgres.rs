//! Hands on PostgreSQL: what the tool reads from and writes to servers, one primitive per module.

pub mod introspect;
