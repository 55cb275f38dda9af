//! Placeholder while the lints are written.
