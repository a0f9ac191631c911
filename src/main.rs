//! The `strangler` binary.

fn main() {}
