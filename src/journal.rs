//! Our own tables in schema `strangler`: the only state that the tool keeps.

pub mod migrate;
