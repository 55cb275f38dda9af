//! OCI values and rules, pure: nothing here touches the file system, the environment or the clock.
//!
//! - Images: [`digest`], [`reference`], [`platform`], [`image`].
//! - Containers: [`builder`] turns an image's configuration and a person's wishes into a runtime configuration over the
//!   [`defaults`].

pub mod digest;
pub mod image;
pub mod platform;
pub mod reference;
