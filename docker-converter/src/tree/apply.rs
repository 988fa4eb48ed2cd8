//! Applying the entries of a layer to the tree below it.

use std::collections::btree_map;

use super::{Child, Directory, Id, Inode, Node, ROOT, Tree, implied_directory};
use crate::tarball::{Entry, Kind, MAX_PATH};

/// Begins the name of an entry that deletes (OCI image specification, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Deletes what lower layers have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins the names of what AUFS kept for itself; engines ignore it.
const AUFS: &[u8] = b".wh..wh.";

/// On a directory: what is made in it belongs to its group (inode(7)).
const SET_GROUP_ID: u16 = 0o2000;

impl Tree {
    /// Applies one entry of layer number `layer`. Numbers ascend from 0.
    ///
    /// # Errors
    /// What is wrong with the entry. The tree is then of no use any more.
    pub fn apply(&mut self, layer: u32, entry: Entry) -> Result<(), String> {
        let Entry { path, kind, meta } = entry;
        if path.is_empty() {
            if kind != Kind::Directory {
                return Err("the root must be a directory".to_owned());
            }
            self.inode_mut(ROOT).meta = meta;
            return Ok(());
        }
        let (parent, name) = split(&path);
        if is_aufs(parent, name) {
            return Ok(());
        }
        let place = self.resolve(parent)?;
        if let Some(deleted) = name.strip_prefix(WHITEOUT) {
            if place.missing.is_empty() {
                self.delete(layer, place.directory(), name, deleted)?;
            } else if matches!(deleted, b"" | b"." | b"..") {
                return Err(no_whiteout(name));
            }
            return Ok(());
        }
        for directory in place.directories() {
            self.touch(*directory, layer);
        }
        let mut parent = place.directory();
        for missing in &place.missing {
            parent = self.make_directory(layer, parent, missing)?;
        }
        self.put(layer, parent, name, kind, meta)
    }

    fn touch(&mut self, id: Id, layer: u32) {
        if let Some(directory) = self.directory_mut(id) {
            directory.touched = layer;
        }
    }

    /// Makes a directory that the layer has no entry for, or not yet.
    fn make_directory(&mut self, layer: u32, parent: Id, name: &[u8]) -> Result<Id, String> {
        if name.starts_with(WHITEOUT) {
            return Err(format!(
                "a directory called {:?}",
                String::from_utf8_lossy(name)
            ));
        }
        if self.child(parent, name).is_some() {
            return Err(format!(
                "{:?} on the way to it is no directory",
                String::from_utf8_lossy(name)
            ));
        }
        let path_length = self.path_length(parent, name)?;
        let mut directory = implied_directory(layer, path_length);
        // As mkdir(2) does for engines, which make it on a disk.
        let above = &self.inode(parent).meta;
        if above.mode & SET_GROUP_ID != 0 {
            directory.meta.mode |= SET_GROUP_ID;
            directory.meta.gid = above.gid;
        }
        let id = self.add(directory);
        self.link(layer, parent, name, id);
        Ok(id)
    }

    fn put(
        &mut self,
        layer: u32,
        parent: Id,
        name: &[u8],
        kind: Kind,
        meta: crate::tarball::Meta,
    ) -> Result<(), String> {
        let path_length = self.path_length(parent, name)?;
        let existing = self.child(parent, name);
        if let (Kind::Directory, Some(existing)) = (&kind, existing)
            && self.directory(existing.id).is_some()
        {
            self.touch(existing.id, layer);
            self.inode_mut(existing.id).meta = meta;
            return Ok(());
        }
        // Whatever had the name is gone, also as the target of a hard link from here.
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.remove(name);
        }
        let node = match kind {
            Kind::Link(target) => {
                let id = self.link_target(&target)?;
                self.link(layer, parent, name, id);
                return Ok(());
            }
            Kind::Directory => {
                let Inode { node, .. } = implied_directory(layer, path_length);
                node
            }
            Kind::File(content) => Node::File { layer, content },
            Kind::Symlink(target) => Node::Symlink(target),
            Kind::Character(device) => Node::Character(device),
            Kind::Block(device) => Node::Block(device),
            Kind::Fifo => Node::Fifo,
        };
        let id = self.add(Inode { meta, node });
        self.link(layer, parent, name, id);
        Ok(())
    }

    fn link(&mut self, layer: u32, parent: Id, name: &[u8], id: Id) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), Child { id, layer });
        }
    }

    /// What a hard link leads to: through symbolic links on the way, not through one at the end.
    fn link_target(&self, target: &[u8]) -> Result<Id, String> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let (parent, name) = split(target);
        let place = self.resolve(parent)?;
        let child = match place.missing.is_empty() {
            true => self.child(place.directory(), name),
            false => None,
        };
        match child {
            Some(child) if self.directory(child.id).is_none() => Ok(child.id),
            None if !target.is_empty() => {
                Err(format!("a hard link to {:?}, which is not there", shown()))
            }
            _ => Err(format!("a hard link to the directory {:?}", shown())),
        }
    }

    /// The length of the path of `name` in a directory.
    fn path_length(&self, parent: Id, name: &[u8]) -> Result<usize, String> {
        let above = self
            .directory(parent)
            .map_or(0, |directory| directory.path_length);
        match above + 1 + name.len() {
            length if length > MAX_PATH => Err(format!(
                "a path of more than {MAX_PATH} bytes, links resolved"
            )),
            length => Ok(length),
        }
    }

    /// Applies a whiteout. It deletes what lower layers have, wherever in its own layer it stands.
    fn delete(
        &mut self,
        layer: u32,
        parent: Id,
        name: &[u8],
        deleted: &[u8],
    ) -> Result<(), String> {
        if name == OPAQUE {
            self.delete_lower(layer, parent);
            return Ok(());
        }
        if matches!(deleted, b"" | b"." | b"..") {
            return Err(no_whiteout(name));
        }
        let Some(child) = self.child(parent, deleted) else {
            // Another whiteout may have deleted it, or nothing is there: engines take both.
            return Ok(());
        };
        match self.directory(child.id) {
            Some(directory) if directory.touched == layer => self.delete_lower(layer, child.id),
            None if child.layer == layer => {}
            _ => {
                if let Some(directory) = self.directory_mut(parent) {
                    directory.children.remove(deleted);
                }
            }
        }
        Ok(())
    }

    /// Deletes what lower layers have in a directory.
    fn delete_lower(&mut self, layer: u32, directory: Id) {
        let mut todo = vec![directory];
        while let Some(id) = todo.pop() {
            let children = match self.directory_mut(id) {
                Some(directory) => std::mem::take(&mut directory.children),
                None => continue,
            };
            let kept: btree_map::BTreeMap<_, _> = children
                .into_iter()
                .filter(|(_, child)| match self.directory(child.id) {
                    Some(Directory { touched, .. }) if *touched == layer => {
                        todo.push(child.id);
                        true
                    }
                    Some(_) => false,
                    None => child.layer == layer,
                })
                .collect();
            if let Some(directory) = self.directory_mut(id) {
                directory.children = kept;
            }
        }
    }
}

/// A path's directory and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Whether a path is one that AUFS kept for itself.
fn is_aufs(parent: &[u8], name: &[u8]) -> bool {
    (name.starts_with(AUFS) && name != OPAQUE)
        || parent
            .split(|byte| *byte == b'/')
            .any(|name| name.starts_with(AUFS))
}

fn no_whiteout(name: &[u8]) -> String {
    format!(
        "a whiteout that deletes nothing: {:?}",
        String::from_utf8_lossy(name)
    )
}
