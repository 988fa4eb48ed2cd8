//! Compares two trees of files in everything that they have: names, types, modes, owners, times, devices, extended
//! attributes, contents, and which names are one inode.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// How much is compared at a time.
const CHUNK: usize = 1 << 20;

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    /// Names below the two directories, and these.
    pub names: usize,
    /// Extended attributes.
    pub attributes: usize,
    /// Names of inodes that have others.
    pub links: usize,
    /// Bytes of regular files.
    pub bytes: u64,
}

/// Compares the trees.
///
/// # Errors
/// The first difference, or a file cannot be read.
pub fn compare(ours: &Path, theirs: &Path) -> Result<Compared> {
    let mut comparison = Comparison {
        compared: Compared::default(),
        inodes: HashMap::new(),
        backwards: HashMap::new(),
        buffers: (vec![0; CHUNK], vec![0; CHUNK]),
    };
    comparison.inode(OsStr::new("/"), ours, theirs)?;
    comparison.directory(ours, theirs)?;
    Ok(comparison.compared)
}

type Inode = (u64, u64);

struct Comparison {
    compared: Compared,
    /// Theirs for ours, and ours for theirs.
    inodes: HashMap<Inode, Inode>,
    backwards: HashMap<Inode, Inode>,
    buffers: (Vec<u8>, Vec<u8>),
}

impl Comparison {
    /// Compares what is in two directories. Paths are kept short: they may be longer than what a call takes.
    fn directory(&mut self, ours: &Path, theirs: &Path) -> Result<()> {
        let (names, their_names) = (names(ours)?, names(theirs)?);
        let differing: Vec<_> = names.symmetric_difference(&their_names).take(5).collect();
        ensure!(
            differing.is_empty(),
            "in {} but not in {}, or the other way round: {differing:?}",
            ours.display(),
            theirs.display()
        );
        for name in names {
            let (ours, theirs) = (ours.join(&name), theirs.join(&name));
            self.inode(&name, &ours, &theirs)
                .with_context(|| format!("{}", ours.display()))?;
            if fs::symlink_metadata(&ours)?.is_dir() {
                self.below(&ours, &theirs)?;
            }
        }
        Ok(())
    }

    /// Through descriptors where the paths get long.
    fn below(&mut self, ours: &Path, theirs: &Path) -> Result<()> {
        if ours.as_os_str().len() < 2000 && theirs.as_os_str().len() < 2000 {
            return self.directory(ours, theirs);
        }
        let (our_dir, their_dir) = (File::open(ours)?, File::open(theirs)?);
        let path = |file: &File| {
            use std::os::fd::AsRawFd;
            std::path::PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
        };
        self.directory(&path(&our_dir), &path(&their_dir))
    }

    fn inode(&mut self, name: &OsStr, ours: &Path, theirs: &Path) -> Result<()> {
        self.compared.names += 1;
        let (our, their) = (fs::symlink_metadata(ours)?, fs::symlink_metadata(theirs)?);
        for (what, our, their) in [
            (
                "type and mode",
                u64::from(our.mode()),
                u64::from(their.mode()),
            ),
            ("owner", our.uid().into(), their.uid().into()),
            ("group", our.gid().into(), their.gid().into()),
            ("mtime", our.mtime() as u64, their.mtime() as u64),
            ("device", our.rdev(), their.rdev()),
        ] {
            ensure!(
                our == their,
                "{what}: {our:o}, umoci's has {their:o} (octal)"
            );
        }
        self.attributes(ours, theirs)?;
        if our.is_dir() {
            return Ok(());
        }
        ensure!(
            our.nlink() == their.nlink(),
            "{} links, umoci's has {}",
            our.nlink(),
            their.nlink()
        );
        if self.linked(&our, &their)? {
            return Ok(());
        }
        let kind = our.file_type();
        if kind.is_symlink() {
            let (our, their) = (fs::read_link(ours)?, fs::read_link(theirs)?);
            ensure!(our == their, "target: {our:?}, umoci's has {their:?}");
        } else if kind.is_file() {
            ensure!(
                our.len() == their.len(),
                "{} bytes, umoci's has {}",
                our.len(),
                their.len()
            );
            self.content(ours, theirs)?;
        } else if !(kind.is_char_device() || kind.is_block_device() || kind.is_fifo()) {
            bail!("{name:?} is of no type that an image has");
        }
        Ok(())
    }

    /// Whether both were compared under another name.
    fn linked(&mut self, our: &Metadata, their: &Metadata) -> Result<bool> {
        if our.nlink() == 1 {
            return Ok(false);
        }
        self.compared.links += 1;
        let (our, their) = ((our.dev(), our.ino()), (their.dev(), their.ino()));
        let known = self.inodes.insert(our, their);
        let back = self.backwards.insert(their, our);
        match (known, back) {
            (None, None) => Ok(false),
            (Some(known), Some(back)) if known == their && back == our => Ok(true),
            _ => bail!("it is a hard link to another file than in umoci's"),
        }
    }

    fn attributes(&mut self, ours: &Path, theirs: &Path) -> Result<()> {
        let (our, their) = (attributes(ours)?, attributes(theirs)?);
        ensure!(
            our == their,
            "extended attributes: {our:?}, umoci's has {their:?}"
        );
        self.compared.attributes += our.len();
        Ok(())
    }

    fn content(&mut self, ours: &Path, theirs: &Path) -> Result<()> {
        let (mut our, mut their) = (File::open(ours)?, File::open(theirs)?);
        let (a, b) = &mut self.buffers;
        loop {
            let length = our.read(a)?;
            if length == 0 {
                return Ok(());
            }
            their.read_exact(&mut b[..length])?;
            ensure!(a[..length] == b[..length], "its content differs");
            self.compared.bytes += length as u64;
        }
    }
}

fn names(dir: &Path) -> Result<BTreeSet<OsString>> {
    fs::read_dir(dir)
        .with_context(|| format!("{}", dir.display()))?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn attributes(path: &Path) -> Result<BTreeSet<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        // So squashfs says that there are none.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut attributes = BTreeSet::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        attributes.insert((name.to_vec(), value));
    }
    Ok(attributes)
}
