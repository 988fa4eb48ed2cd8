//! Writes a tree as one tar archive that is the same for the same tree: sorted, every inode once, its other names as hard links.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

use crate::blob::Blob;
use crate::tarball::{BLOCK, Content, Device, Meta};
use crate::tree::{Id, Node, ROOT, Tree};

/// squashfs counts seconds from 1970 in 32 bits.
const MAX_TIME: i64 = u32::MAX as i64;

/// The kinds of extended attributes that squashfs has (include/uapi in Linux: fs/squashfs/squashfs_fs.h, `SQUASHFS_XATTR_*`).
const XATTR_KINDS: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// The longest path that a plain header can hold.
const SHORT: usize = 100;

/// What cannot be kept of a tree, for people.
pub type Losses = Vec<String>;

/// Writes the tree. `layers` are the uncompressed layers that it was made of. Returns what squashfs cannot keep.
///
/// # Errors
/// A layer cannot be read, or the archive cannot be written.
pub fn write(tree: &Tree, layers: &[Blob], to: impl Write) -> io::Result<Losses> {
    let mut names: HashMap<Id, usize> = HashMap::new();
    tree.walk(|_, id| -> io::Result<()> {
        *names.entry(id).or_default() += 1;
        Ok(())
    })?;
    let mut writer = Writer {
        builder: Builder::new(to),
        layers,
        losses: Losses::new(),
    };
    let mut first_names: HashMap<Id, Vec<u8>> = HashMap::new();
    tree.walk(|path, id| {
        if let Some(first) = first_names.get(&id) {
            return writer.link(path, first);
        }
        if names.get(&id).is_some_and(|names| *names > 1) {
            first_names.insert(id, path.to_owned());
        }
        writer.inode(path, tree, id)
    })?;
    writer.builder.finish()?;
    Ok(writer.losses)
}

struct Writer<'a, W: Write> {
    builder: Builder<W>,
    layers: &'a [Blob],
    losses: Losses,
}

impl<W: Write> Writer<'_, W> {
    fn inode(&mut self, path: &[u8], tree: &Tree, id: Id) -> io::Result<()> {
        let inode = tree.inode(id);
        let meta = self.storable(path, &inode.meta);
        let path: &[u8] = if id == ROOT { b"./" } else { path };
        let mut header = Header::new_ustar();
        let mode = meta.mode.into();
        match &inode.node {
            Node::Directory(_) => header.set_entry_type(EntryType::Directory),
            Node::Symlink(target) => {
                return self.entry(path, Some(target), &meta, 0o777, EntryType::Symlink, header);
            }
            Node::Character(device) => set_device(&mut header, *device, EntryType::Char)?,
            Node::Block(device) => set_device(&mut header, *device, EntryType::Block)?,
            Node::Fifo => header.set_entry_type(EntryType::Fifo),
            Node::File { layer, content } => {
                header.set_size(content.size);
                self.entry(path, None, &meta, mode, EntryType::Regular, header)?;
                let to = self.builder.get_mut();
                self::content(&self.layers[*layer as usize], content, to)?;
                return zeros(
                    to,
                    content.size.next_multiple_of(BLOCK as u64) - content.size,
                );
            }
        }
        let kind = header.entry_type();
        self.entry(path, None, &meta, mode, kind, header)
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.entry(
            path,
            Some(target),
            &Meta::default(),
            0,
            EntryType::Link,
            Header::new_ustar(),
        )
    }

    /// Writes a header, with an extended header before it where that is needed.
    fn entry(
        &mut self,
        path: &[u8],
        link: Option<&[u8]>,
        meta: &Meta,
        mode: u32,
        kind: EntryType,
        mut header: Header,
    ) -> io::Result<()> {
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        let names = header.as_old_mut();
        match path.len() {
            ..=SHORT => names.name[..path.len()].copy_from_slice(path),
            _ => records.push(("path", path)),
        }
        if let Some(link) = link {
            match link.len() {
                ..=SHORT => names.linkname[..link.len()].copy_from_slice(link),
                _ => records.push(("linkpath", link)),
            }
        }
        let xattrs = meta
            .xattrs
            .iter()
            .map(|xattr| {
                let name = std::str::from_utf8(&xattr.name).map_err(io::Error::other)?;
                Ok((format!("SCHILY.xattr.{name}"), &*xattr.value))
            })
            .collect::<io::Result<Vec<_>>>()?;
        records.extend(xattrs.iter().map(|(key, value)| (key.as_str(), *value)));
        self.builder.append_pax_extensions(records)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(meta.uid.into());
        header.set_gid(meta.gid.into());
        header.set_mtime(meta.mtime as u64);
        header.set_cksum();
        self.builder.get_mut().write_all(header.as_bytes())
    }

    /// What squashfs can hold of an inode's metadata.
    fn storable(&mut self, path: &[u8], meta: &Meta) -> Meta {
        let mut meta = meta.clone();
        let shown = || String::from_utf8_lossy(path);
        if !(0..=MAX_TIME).contains(&meta.mtime) {
            self.losses.push(format!(
                "/{}: squashfs has no time {} s from 1970",
                shown(),
                meta.mtime
            ));
            meta.mtime = meta.mtime.clamp(0, MAX_TIME);
        }
        let (kept, lost): (Vec<_>, Vec<_>) = meta.xattrs.into_iter().partition(|xattr| {
            let prefix =
                |kind: &&[u8]| xattr.name.starts_with(kind) && xattr.name.len() > kind.len();
            XATTR_KINDS.iter().any(prefix) && std::str::from_utf8(&xattr.name).is_ok()
        });
        for xattr in lost {
            self.losses.push(format!(
                "/{}: squashfs has no extended attribute {:?}",
                shown(),
                String::from_utf8_lossy(&xattr.name)
            ));
        }
        meta.xattrs = kept.into();
        meta
    }
}

/// Writes the content of a file.
///
/// # Errors
/// The layer cannot be read, or what is written to fails.
pub fn content(layer: &Blob, content: &Content, to: &mut impl Write) -> io::Result<()> {
    let written = io::copy(&mut Stream::new(layer, content), to)?;
    match written == content.size {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Reads the content of a file, what its pieces leave out as zeros.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    layer: &'a Blob,
    content: &'a Content,
    /// The next piece to read.
    piece: usize,
    position: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(layer: &'a Blob, content: &'a Content) -> Self {
        Self {
            layer,
            content,
            piece: 0,
            position: 0,
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let upto = |end: u64| {
            let left = usize::try_from(end - self.position).unwrap_or(usize::MAX);
            left.min(buffer.len())
        };
        while matches!(self.content.pieces.get(self.piece), Some(piece) if piece.length == 0) {
            self.piece += 1;
        }
        let piece = self.content.pieces.get(self.piece);
        let read = match piece {
            Some(piece) if self.position >= piece.offset => {
                let within = self.position - piece.offset;
                let length = upto(piece.offset + piece.length);
                let part = self.layer.piece(piece.position + within, length as u64);
                part.reader().read_exact(&mut buffer[..length])?;
                length
            }
            _ => {
                let length = upto(piece.map_or(self.content.size, |piece| piece.offset));
                buffer[..length].fill(0);
                length
            }
        };
        self.position += read as u64;
        if piece.is_some_and(|piece| self.position == piece.offset + piece.length) {
            self.piece += 1;
        }
        Ok(read)
    }
}

fn set_device(header: &mut Header, device: Device, kind: EntryType) -> io::Result<()> {
    header.set_entry_type(kind);
    header.set_device_major(device.major)?;
    header.set_device_minor(device.minor)
}

pub(crate) fn zeros(to: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), to)?;
    Ok(())
}
