//! What several test files need.

pub mod bench;
pub mod binary;
pub mod cluster;
pub mod scenario;
pub mod split;
pub mod tables;
pub mod wait;
pub mod writers;
