//! The tree of files that an image's layers make: inodes in memory, contents where they are in the layers.
//!
//! Layers are applied as the OCI image specification says (layer.md), and as umoci does where it leaves a choice; docs/converter.md
//! lists the choices. Nothing is ever written to a disk, so no name in a layer can lead out of the image.

mod apply;
mod resolve;

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;

use crate::tarball::{Content, Device, Meta};

/// The name of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

impl Id {
    /// A number below [`Tree::inodes`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The root directory.
pub const ROOT: Id = Id(0);

/// A tree of files.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// An inode.
#[derive(Debug)]
pub struct Inode {
    /// Everything but its content.
    pub meta: Meta,
    /// What it is.
    pub node: Node,
}

/// What an inode is.
#[derive(Debug)]
pub enum Node {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File {
        /// The number of the layer that holds its content, the first is 0.
        layer: u32,
        /// Where it is in the layer.
        content: Content,
    },
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A FIFO.
    Fifo,
}

/// A directory.
#[derive(Debug)]
pub struct Directory {
    children: BTreeMap<Box<[u8]>, Child>,
    /// The last layer that has an entry for it, or for something in it.
    touched: u32,
    /// The length of its path from the root, in bytes.
    path_length: usize,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Child {
    id: Id,
    /// The layer that made it; for a directory, [`Directory::touched`] counts.
    layer: u32,
}

impl Tree {
    /// A root directory with nothing in it: of root's, mode 0755, of 1970 (as umoci makes it).
    #[must_use]
    pub fn new() -> Self {
        let mut tree = Self { inodes: Vec::new() };
        tree.add(implied_directory(0, 0));
        tree
    }

    /// An inode.
    #[must_use]
    pub fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// How many inodes there are, those counted that have no name any more.
    pub(crate) fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// The names in a directory, sorted by their bytes; nothing for what is none.
    pub fn children(&self, id: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let children = match &self.inode(id).node {
            Node::Directory(directory) => Some(&directory.children),
            _ => None,
        };
        children
            .into_iter()
            .flatten()
            .map(|(name, child)| (&**name, child.id))
    }

    /// Calls `visit` with every path (relative, empty for the root) and its inode, directories before what is in them,
    /// sorted by the bytes of the names.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn walk<E>(&self, mut visit: impl FnMut(&[u8], Id) -> Result<(), E>) -> Result<(), E> {
        // Paths are bounded, but a deep tree is still no reason to recurse.
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            visit(&path, id)?;
            let start = todo.len();
            for (name, child) in self.children(id) {
                let mut child_path = Vec::with_capacity(path.len() + 1 + name.len());
                child_path.extend_from_slice(&path);
                if !child_path.is_empty() {
                    child_path.push(b'/');
                }
                child_path.extend_from_slice(name);
                todo.push((child_path, child));
            }
            todo[start..].reverse();
        }
        Ok(())
    }

    /// The content of a regular file at a path, following the image's symbolic links; with its layer.
    #[must_use]
    pub fn file(&self, path: &[u8]) -> Option<(u32, &Content)> {
        let place = self.resolve(path).ok()?;
        let (parent, name) = match place.missing.as_slice() {
            [name] => (place.directory(), name),
            _ => return None,
        };
        match &self.inode(self.child(parent, name)?.id).node {
            Node::File { layer, content } => Some((*layer, content)),
            _ => None,
        }
    }

    /// How many bytes the regular files have, each counted once.
    #[must_use]
    pub fn size(&self) -> u64 {
        let mut seen = HashSet::new();
        let mut size = 0_u64;
        let summed: Result<(), Infallible> = self.walk(|_, id| {
            if let Node::File { content, .. } = &self.inode(id).node
                && seen.insert(id)
            {
                size = size.saturating_add(content.size);
            }
            Ok(())
        });
        match summed {
            Ok(()) => size,
        }
    }

    fn add(&mut self, inode: Inode) -> Id {
        // The number of entries is bounded far below.
        let id = Id(self.inodes.len() as u32);
        self.inodes.push(inode);
        id
    }

    fn inode_mut(&mut self, id: Id) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    fn directory(&self, id: Id) -> Option<&Directory> {
        match &self.inode(id).node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: Id) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, directory: Id, name: &[u8]) -> Option<Child> {
        self.directory(directory)?.children.get(name).copied()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// A directory that no entry describes (yet).
fn implied_directory(layer: u32, path_length: usize) -> Inode {
    Inode {
        meta: Meta {
            mode: 0o755,
            ..Meta::default()
        },
        node: Node::Directory(Directory {
            children: BTreeMap::new(),
            touched: layer,
            path_length,
        }),
    }
}
