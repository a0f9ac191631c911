//! The mirror.

pub mod progress;
