//! The protocol of the flip as a model: two databases per slice, their writers, mirrors and operators, every order
//! in which they can act within the bounds, and what must hold in every state. The operators call the very
//! [`strangler::authority::step`] that ships.
//!
//! Each test of a mutant breaks one rule and demands that the checker finds out. docs/protocol.md, section 12, says what
//! the model covers.

mod checks;
mod database;
mod failover;
mod group;
mod invariants;
mod log;
mod mirror;
mod mutant;
mod operator;
mod recovery;
mod transaction;
mod world;
mod writers;
