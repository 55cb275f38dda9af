//! The tables of `meta.redb` and their keys.
//!
//! Every table maps (namespace, key) to bytes, so that one namespace is one contiguous range and nothing can be read
//! across a namespace by accident. Rows of the daemon as a whole stand under the empty namespace. Compound keys join
//! their parts with a NUL byte, which no identifier, digest, reference or snapshot key may contain.

use redb::TableDefinition;

/// A table: (namespace, key) to record.
pub type Table = TableDefinition<'static, (&'static str, &'static str), &'static [u8]>;

/// Facts about the database itself, under the empty namespace.
pub const FACTS: Table = Table::new("facts");
/// Namespaces: ("", name) to labels.
pub const NAMESPACES: Table = Table::new("namespaces");
/// Containers: (namespace, id) to `containers.v1.Container`.
pub const CONTAINERS: Table = Table::new("containers");
/// Images: (namespace, name) to `images.v1.Image`.
pub const IMAGES: Table = Table::new("images");
/// Leases: (namespace, id) to `leases.v1.Lease`.
pub const LEASES: Table = Table::new("leases");
/// What leases hold: (namespace, lease NUL type NUL id) to nothing.
pub const LEASE_RESOURCES: Table = Table::new("lease_resources");
/// Blobs as a namespace sees them: (namespace, digest) to `content.v1.Info`.
pub const CONTENT: Table = Table::new("content");
/// Snapshots: (namespace, snapshotter NUL name) to a snapshot record.
pub const SNAPSHOTS: Table = Table::new("snapshots");
/// Snapshot children: (namespace, snapshotter NUL parent NUL child) to nothing.
pub const SNAPSHOT_CHILDREN: Table = Table::new("snapshot_children");
/// Sandboxes: (namespace, id) to `types.Sandbox`.
pub const SANDBOXES: Table = Table::new("sandboxes");
/// Whatever the engine keeps per namespace: (namespace, kind NUL name) to its own encoding.
pub const ENGINE: Table = Table::new("engine");

/// All of them, made when the database is.
pub const ALL: [Table; 11] = [
    FACTS,
    NAMESPACES,
    CONTAINERS,
    IMAGES,
    LEASES,
    LEASE_RESOURCES,
    CONTENT,
    SNAPSHOTS,
    SNAPSHOT_CHILDREN,
    SANDBOXES,
    ENGINE,
];

/// The layout of records and keys that this build reads and writes.
pub const VERSION: u32 = 1;

/// Joins the parts of a compound key.
pub fn join(parts: &[&str]) -> String {
    parts.join("\0")
}
