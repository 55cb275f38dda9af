//! The shim.
#![cfg_attr(test, allow(clippy::disallowed_methods))]
