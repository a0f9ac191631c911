//! What several test files need.

pub mod cluster;
pub mod tables;
pub mod wait;
