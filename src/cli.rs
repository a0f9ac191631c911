//! The command line: what can be typed, and which module does it.
//!
//! Only this module and what is below it read the environment, print, or know of exit codes.

pub mod environment;
pub mod logging;
pub mod mirror_progress;
pub mod report;
pub mod ui;
pub mod words;
