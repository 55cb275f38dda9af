//! What an image says of its files, while it is put together.

use std::collections::BTreeMap;

/// One file of a [`Tree`].
pub type Id = usize;

/// A file, under whatever names.
#[derive(Debug, Clone)]
pub struct Node {
    /// Type and permission bits, as stat has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is in it.
    pub content: Content,
}

/// What is in a file.
#[derive(Debug, Clone)]
pub enum Content {
    /// Names.
    Directory(BTreeMap<Box<[u8]>, Id>),
    /// Bytes of the image.
    File {
        /// Where they begin.
        start: u64,
        /// How many there are.
        size: u64,
    },
    /// The target of a symbolic link.
    Link(Box<[u8]>),
    /// A device's number, as stat has it; 0 for what is none.
    Special(u64),
}

impl Node {
    /// A file of root's, made in 1970.
    pub fn new(mode: u32, content: Content) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new(), content }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&mut self, key: &[u8], value: &[u8]) {
        self.xattrs.retain(|(known, _)| known != key);
        self.xattrs.push((key.to_vec(), value.to_vec()));
    }
}

/// Files and their names, from the root down. What loses its last name stays in memory, but does not get into the image.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: Id = 0;

    /// An empty root directory.
    pub fn new() -> Self {
        Self { nodes: vec![Node::new(0o040_755, Content::Directory(BTreeMap::new()))] }
    }

    /// Adds a file that has no name yet.
    pub fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A file.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// A file, to be changed.
    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id]
    }

    /// How many files were ever added, the root included.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// What a directory has under a name; nothing where it is no directory.
    pub fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        match &self.nodes[directory].content {
            Content::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    /// The names in a directory; none where it is none.
    pub fn children(&self, directory: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let names = match &self.nodes[directory].content {
            Content::Directory(names) => Some(names),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, id)| (name.as_ref(), *id))
    }

    /// Gives a file a name in a directory, in place of whatever has it.
    pub fn insert(&mut self, directory: Id, name: &[u8], id: Id) {
        if let Content::Directory(names) = &mut self.nodes[directory].content {
            names.insert(name.into(), id);
        }
    }

    /// Takes a name away.
    pub fn remove(&mut self, directory: Id, name: &[u8]) -> Option<Id> {
        match &mut self.nodes[directory].content {
            Content::Directory(names) => names.remove(name),
            _ => None,
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}
