//! OCI values and rules, pure: nothing here touches the file system, the environment or the clock.
//!
//! - Images: [`digest`], [`reference`], [`platform`], [`image`].
//! - Users: [`user`].
//! - Configuration: [`config`] reads config.json, [`validate`] holds it against the rules of the specification.
//! - System calls: [`syscalls`].
//! - Containers: [`builder`] turns an image's configuration and a person's wishes into a runtime configuration over the
//!   [`defaults`].
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod builder;
pub mod config;
pub mod defaults;
pub mod digest;
pub mod image;
pub mod platform;
pub mod reference;
pub mod syscalls;
pub mod user;
pub mod validate;
