//! The daemon's values to messages.

pub mod tasks;
