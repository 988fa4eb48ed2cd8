//! Writes a cpio archive in the "newc" format, the form of an initramfs.
//!
//! Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Write};

/// A writer of newc records. Every record is owned by root and has the time stamp 0, so equal input gives equal bytes.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    inode: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory with mode 0755. `name` is relative to the root, without a leading slash.
    ///
    /// # Errors
    /// Fails when writing fails.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.record(name, S_IFDIR | 0o755, 2, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// Fails when writing fails or the file is 4 GiB or larger.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.record(name, S_IFREG | (mode & 0o7777), 1, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Fails when writing fails.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.record(name, S_IFLNK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// Fails when writing fails.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.record(name, S_IFCHR | 0o600, 1, (major, minor), &[])
    }

    /// Writes the trailer and returns the writer.
    ///
    /// # Errors
    /// Fails when writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.record("TRAILER!!!", 0, 1, (0, 0), &[])?;
        Ok(self.out)
    }

    fn record(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{name}: too large for cpio")))?;
        self.inode += 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inode,
            0,
            0,
            0,
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.put(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.file("bin/x", 0o755, b"hello").unwrap();
        archive.symlink("init", "bin/x").unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listed = child.wait_with_output().unwrap();
        assert!(listed.status.success());
        assert_eq!(
            String::from_utf8(listed.stdout).unwrap(),
            "bin\nbin/x\ninit\n"
        );
    }
}
