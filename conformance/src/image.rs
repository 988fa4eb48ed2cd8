//! The images that are converted: made by debootstrap and umoci, copied by skopeo, kept from run to run.

pub mod real;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::busybox;
use crate::command::ok;

/// A change to this file makes the images anew.
const RECIPE: &str = include_str!("image.rs");

/// What the demo image's web server says at first.
pub const PAGE: &str = "served by nginx from a sealed volume\n";

/// The small image's program: counts its starts in its volume, and waits.
const SERVICE: &str = "#!/bin/sh
trap 'exit 0' TERM
echo start >> /data/starts
while :; do sleep 1; done
";

/// An image in two forms.
#[derive(Debug, Clone)]
pub struct Image {
    /// OCI layout; its only image has the reference `image`.
    pub layout: PathBuf,
    /// The same as `docker save` writes it.
    pub archive: PathBuf,
}

impl Image {
    /// Debian bookworm with nginx-light and `VOLUME /var/www/html`, in three layers, the last of which deletes files of
    /// the first two. Takes a minute the first time.
    ///
    /// # Errors
    /// One of the programs that make it fails; nothing is kept then.
    pub fn demo(cache: &Path) -> Result<Self> {
        Self::kept(cache, "demo", make_demo)
    }

    /// Busybox with all that layers can hold: set-user-ID files, hard links, devices, extended attributes, file
    /// capabilities, long names, other owners, whiteouts, an opaque directory; `VOLUME /data`.
    ///
    /// # Errors
    /// One of the programs that make it fails; nothing is kept then.
    pub fn small(cache: &Path) -> Result<Self> {
        Self::kept(cache, "small", make_small)
    }

    /// The same without the volume.
    ///
    /// # Errors
    /// One of the programs that make it fails; nothing is kept then.
    pub fn stateless(cache: &Path) -> Result<Self> {
        Self::kept(cache, "stateless", make_stateless)
    }

    fn kept(cache: &Path, name: &str, make: fn(&Path) -> Result<()>) -> Result<Self> {
        let dir = cached(cache, name, RECIPE, make)?;
        Ok(Self {
            layout: dir.join("layout"),
            archive: dir.join("image.tar"),
        })
    }
}

/// The directory that `make` filled, now or in an earlier run with the same `recipe`. What older recipes made is removed.
fn cached(
    cache: &Path,
    name: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let recipe = hex::encode(&Sha256::digest(recipe)[..6]);
    let dir = cache.join(format!("{name}-{recipe}"));
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(cache)?;
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let found = entry.file_name();
        let older = found
            .to_str()
            .and_then(|found| found.strip_prefix(name)?.strip_prefix('-'))
            .is_some_and(|old| old.len() == recipe.len() && hex::decode(old).is_ok());
        if older {
            // Another test may be quicker.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(cache)?;
    make(new.path()).with_context(|| format!("cannot make the {name} image"))?;
    let tree = new.path().join("bundle");
    if tree.is_dir() {
        fs::remove_dir_all(&tree).with_context(|| format!("{}", tree.display()))?;
    }
    match fs::rename(new.path(), &dir) {
        // Another test was quicker.
        Err(_) if dir.is_dir() => Ok(dir),
        Err(error) => Err(error).with_context(|| format!("{}", dir.display())),
        Ok(()) => Ok(dir),
    }
}

/// umoci's unpacked image, to be changed and packed layer by layer.
struct Layers<'a> {
    dir: &'a Path,
    image: String,
}

impl<'a> Layers<'a> {
    fn begin(dir: &'a Path) -> Result<Self> {
        let layers = Self::empty(dir)?;
        layers.unpack()?;
        Ok(layers)
    }

    /// An image without layers, not unpacked.
    fn empty(dir: &'a Path) -> Result<Self> {
        let layout = dir.join("layout");
        let image = format!("{}:image", layout.display());
        ok(Command::new("umoci")
            .args(["init", "--layout"])
            .arg(&layout))?;
        ok(Command::new("umoci").args(["new", "--image", &image]))?;
        Ok(Self { dir, image })
    }

    fn unpack(&self) -> Result<()> {
        ok(Command::new("umoci")
            .args(["unpack", "--image", &self.image])
            .arg(self.dir.join("bundle")))?;
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.dir.join("bundle/rootfs")
    }

    /// What was changed since the last layer becomes one.
    fn pack(&self) -> Result<()> {
        ok(Command::new("umoci")
            .args(["repack", "--refresh-bundle", "--image", &self.image])
            .arg(self.dir.join("bundle")))?;
        Ok(())
    }

    /// Sets the image configuration.
    fn configure(&self, config: &[&str]) -> Result<()> {
        ok(Command::new("umoci")
            .args(["config", "--image", &self.image])
            .args(config))?;
        ok(Command::new("umoci")
            .args(["gc", "--layout"])
            .arg(self.dir.join("layout")))?;
        Ok(())
    }

    /// Sets the image configuration and writes the archive.
    fn finish(&self, config: &[&str]) -> Result<()> {
        self.configure(config)?;
        let archive = self.dir.join("image.tar");
        ok(Command::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci:{}", self.image))
            .arg(format!(
                "docker-archive:{}:example.org/image:1",
                archive.display()
            )))?;
        Ok(())
    }
}

fn make_demo(dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    ok(Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(&root)
        .args(mirror()?))?;
    layers.pack()?;

    install(&root, &["nginx-light"])?;
    layers.pack()?;

    fs::remove_file(root.join(POLICY))?;
    fs::remove_file(root.join("etc/resolv.conf"))?;
    for emptied in [
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
    ] {
        fs::remove_dir_all(root.join(emptied))?;
        fs::create_dir(root.join(emptied))?;
    }
    fs::write(root.join("var/www/html/index.html"), PAGE)?;
    layers.pack()?;
    layers.finish(&[
        "--config.volume=/var/www/html",
        "--config.cmd=nginx",
        "--config.cmd=-g",
        "--config.cmd=daemon off;",
        "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "--config.exposedports=80/tcp",
        "--config.stopsignal=SIGQUIT",
        "--config.label=org.opencontainers.image.title=demo",
    ])
}

/// Says to the packages of a tree whether they may start services.
const POLICY: &str = "usr/sbin/policy-rc.d";

/// Installs packages in a tree of Debian. [`POLICY`] and /etc/resolv.conf stay.
fn install(root: &Path, packages: &[&str]) -> Result<()> {
    let policy = root.join(POLICY);
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    ok(Command::new("chroot")
        .arg(root)
        .args(["apt-get", "install", "--yes", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
    Ok(())
}

/// The mirror that this machine has bookworm from; debootstrap's own choice where it has none.
fn mirror() -> Result<Option<String>> {
    let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
    let targets = ok(Command::new("apt-get")
        .args(["indextargets", "--format", format])
        .arg("Created-By: Packages"))?;
    let mirror = targets
        .lines()
        .find_map(|line| line.strip_prefix("bookworm main "));
    Ok(mirror.map(str::to_owned))
}

fn make_small(dir: &Path) -> Result<()> {
    let layers = small_layers(dir)?;
    layers.finish(&[SMALL_CONFIG, &["--config.volume=/data"]].concat())
}

fn make_stateless(dir: &Path) -> Result<()> {
    small_layers(dir)?.finish(SMALL_CONFIG)
}

/// Image configuration of the small image.
const SMALL_CONFIG: &[&str] = &[
    "--config.entrypoint=/bin/service",
    "--config.env=PATH=/bin",
    "--config.env=COLOUR=blue \"quoted\" \\ back",
    "--config.workingdir=/srv",
    "--config.label=org.example.label=yes",
    "--config.stopsignal=SIGTERM",
];

fn small_layers(dir: &Path) -> Result<Layers<'_>> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    busybox::install(&root)?;
    let write = |path: &str, text: &str, mode: u32| -> Result<PathBuf> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a path")?)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    };
    let sh = |script: &str| ok(Command::new("sh").args(["-ec", script]).current_dir(&root));
    write("bin/service", SERVICE, 0o755)?;
    write("etc/deleted-later", "a secret\n", 0o600)?;
    write("srv/opaque/old", "hidden by the next layer\n", 0o644)?;
    write("srv/replaced/file", "becomes a symlink\n", 0o644)?;
    write("srv/set-user-id", "#!/bin/sh\n", 0o4755)?;
    write("srv/with-capability", "#!/bin/sh\n", 0o755)?;
    write("srv/with-attribute", "x\n", 0o644)?;
    write("data/from-image", "copied into a new volume\n", 0o640)?;
    write(
        &format!("srv/{}/{}", "long".repeat(40), "name".repeat(40)),
        "x\n",
        0o644,
    )?;
    symlink("set-user-id", root.join("srv/symlink"))?;
    symlink("../../../../etc/shadow", root.join("srv/symlink-out"))?;
    fs::hard_link(root.join("srv/set-user-id"), root.join("srv/hard-link"))?;
    sh("chown -R 1000:2000 data
        chmod 2775 data
        setcap cap_net_bind_service=ep srv/with-capability
        setfattr -n user.colour -v blue srv/with-attribute
        mknod srv/null c 1 3
        mkfifo srv/fifo
        truncate -s 3M srv/sparse
        head -c 2000000 /dev/urandom > srv/noise
        touch -d '2001-02-03 04:05:06' srv/old
        touch 'srv/näme with spaces'")?;
    layers.pack()?;

    sh("rm etc/deleted-later
        rm -r srv/opaque srv/replaced
        mkdir srv/opaque
        echo new > srv/opaque/new
        ln -s opaque srv/replaced
        chmod 0700 srv/old")?;
    layers.pack()?;
    write("srv/third-layer", "x\n", 0o644)?;
    layers.pack()?;
    Ok(layers)
}
