//! Layers: a tar of changes applied to a directory, and the changes of a directory made into a tar.
//!
//! A layer is hostile. Everything is done beneath the directory's descriptor: the kernel resolves each parent with the
//! directory as its root, and the last step of a path is made, never followed.
//!
//! ```text
//! stored layer ─ compression ─► tar ─ apply ─► directory ─ settle ─► directory that fits what is below it
//! ```
//!
//! Layers are applied apart from each other, each to its own directory. What needs the layers below, such as the
//! attributes of a directory that the tar does not mention, waits in [`Deferred`] for [`settle`]. A layer can also become
//! an EROFS image instead of files ([`convert`]); what waits then is in [`Unfinished`].

mod ahead;
mod apply;
mod attributes;
mod changes;
mod compression;
mod create;
mod image;
mod lowers;
mod processors;
mod settle;
pub mod tar;
mod target;
#[cfg(test)]
mod tests;
mod whiteout;

pub use ahead::{Ahead, read_ahead};
pub use apply::{Applied, Deferred, Mode, apply};
pub use changes::{Change, changes};
pub use compression::{decompress, decompress_archive, decompress_as};
pub use create::{Changes, Wanted, create, removals};
pub use image::{Unfinished, convert};
pub use lowers::Lowers;
pub use processors::{ONLY_EROFS, Payloads, Processors, own_payloads};
pub use settle::settle;
pub use target::Target;
