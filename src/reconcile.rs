//! Proof that both sides hold the same: rows are hashed where they lie, through the mapping, and only the sums
//! travel.

pub mod digest;
