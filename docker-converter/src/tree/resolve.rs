//! Where a path leads within the image: symbolic links are followed as if the image's root were the root.

use super::{Id, Node, ROOT, Tree};

/// How many symbolic links a path may lead through (filepath-securejoin, as umoci and containerd use it).
const MAX_LINKS: usize = 255;
/// How many names a path may lead through, those in symbolic links counted.
const MAX_STEPS: usize = 8192;

/// Where a path leads: along directories that there are, then along names that are not there, or are no directories.
#[derive(Debug)]
pub(super) struct Place {
    /// From the root down; never empty.
    directories: Vec<Id>,
    pub(super) missing: Vec<Box<[u8]>>,
}

impl Place {
    /// The last directory that there is.
    pub(super) fn directory(&self) -> Id {
        self.directories.last().copied().unwrap_or(ROOT)
    }

    /// The directories from the root down.
    pub(super) fn directories(&self) -> &[Id] {
        &self.directories
    }

    fn up(&mut self) {
        if self.missing.pop().is_none() && self.directories.len() > 1 {
            self.directories.pop();
        }
    }
}

impl Tree {
    /// Follows a path to its end, the last name's symbolic link too.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Place, String> {
        let mut place = Place {
            directories: vec![ROOT],
            missing: Vec::new(),
        };
        // What is still to go, last name first.
        let mut names: Vec<&[u8]> = components(path).collect();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = names.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(format!("a path through more than {MAX_STEPS} names"));
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    place.up();
                    continue;
                }
                _ => {}
            }
            let child = match place.missing.is_empty() {
                true => self.child(place.directory(), name),
                false => None,
            };
            match child.map(|child| (child.id, &self.inode(child.id).node)) {
                Some((id, Node::Directory(_))) => place.directories.push(id),
                Some((_, Node::Symlink(target))) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(format!(
                            "a path through more than {MAX_LINKS} symbolic links"
                        ));
                    }
                    if target.starts_with(b"/") {
                        place.directories.truncate(1);
                    }
                    names.extend(components(target));
                }
                _ => place.missing.push(name.into()),
            }
        }
        Ok(place)
    }
}

/// The names of a path, last first.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.rsplit(|byte| *byte == b'/')
}
