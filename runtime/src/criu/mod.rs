//! Checkpoints, which are made by the criu program.
//!
//! ```text
//! wire      the encoding of its messages       session   one conversation with it
//! options   what it is asked to do             external  mounts that come from outside the container
//! images    what may be in a directory of images before it is read
//! verify    what must be true of processes that came back before they run
//! ```
//!
//! Images are hostile input: whoever could write them could ask for any process. What a restored container gets of the
//! host (mounts, devices, descriptors, namespaces, cgroups) is taken from the bundle alone, under names that images cannot
//! shape; and [`verify`] looks at the result, while it is still held, with the bundle in hand.

pub mod external;
pub mod images;
pub mod options;
pub mod session;
pub mod verify;
pub mod wire;
