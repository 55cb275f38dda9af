//! The `rung` program.
