//! The landing rule: which events of the stream a copied piece already holds, and which must be applied.
//!
//! It decides by transaction visibility, never by comparing log positions of rows: on PostgreSQL a commit can stand
//! in the stream while a later snapshot does not see it yet. `docs/protocol.md` gives the argument.
//! Everything here is pure; `cdc` does the reading and writing.

pub mod key;
pub mod pieces;
pub mod ring;
pub mod row;
pub mod rule;
pub mod sets;
