//! The `rung` program.

fn main() {}
