//! The `gantry` program.
