//! Makes layers by hand.

use std::io::Write;

/// An archive that is being made.
#[derive(Debug, Clone, Default)]
pub struct Archive(Vec<u8>);

/// An entry.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub content: &'a [u8],
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<(&'a str, &'a [u8])>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            link: b"",
            content: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.entry(Entry {
            path: path.as_bytes(),
            content: content.as_bytes(),
            ..Entry::default()
        })
    }

    pub fn directory(self, path: &str) -> Self {
        self.plain(path, b'5')
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.to(path, b'2', target)
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.to(path, b'1', target)
    }

    /// An entry of a kind, without more.
    pub fn plain(self, path: &str, kind: u8) -> Self {
        self.entry(Entry {
            path: path.as_bytes(),
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            ..Entry::default()
        })
    }

    fn to(self, path: &str, kind: u8, target: &str) -> Self {
        self.entry(Entry {
            path: path.as_bytes(),
            kind,
            link: target.as_bytes(),
            mode: 0o777,
            ..Entry::default()
        })
    }

    pub fn entry(mut self, entry: Entry) -> Self {
        let mut header = tar::Header::new_ustar();
        let mut records: Vec<(&str, &[u8])> = Vec::new();
        let names = header.as_old_mut();
        match entry.path.len() {
            ..=100 => names.name[..entry.path.len()].copy_from_slice(entry.path),
            _ => records.push(("path", entry.path)),
        }
        match entry.link.len() {
            ..=100 => names.linkname[..entry.link.len()].copy_from_slice(entry.link),
            _ => records.push(("linkpath", entry.link)),
        }
        let xattrs: Vec<(String, &[u8])> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
            .collect();
        records.extend(xattrs.iter().map(|(key, value)| (key.as_str(), *value)));
        self = self.extended(&records);
        header.set_entry_type(tar::EntryType::new(entry.kind));
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(entry.mtime);
        header.set_size(entry.content.len() as u64);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        self.header(header).content(entry.content)
    }

    /// An extended header.
    pub fn extended(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(&mut self.0);
        builder
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        // Dropped without its end.
        std::mem::forget(builder);
        self
    }

    /// A header whose checksum is made right.
    pub fn header(mut self, mut header: tar::Header) -> Self {
        header.set_cksum();
        self.0.write_all(header.as_bytes()).unwrap();
        self
    }

    /// Bytes, filled up to whole blocks.
    pub fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// The archive without its end.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
