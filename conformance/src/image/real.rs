//! Images as people have them: Debian and services on it, a static one, and those whose layers hold what is seldom.
//!
//! All that need Debian share one debootstrap. Only the OCI layouts are kept.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Layers, POLICY, cached, install, mirror};
use crate::busybox;
use crate::command::{line, ok};

/// A change to this file makes these images anew.
const RECIPE: &str = include_str!("real.rs");

/// An image and how it is made.
#[derive(Debug, Clone, Copy)]
pub struct Real {
    /// What it is called.
    pub name: &'static str,
    make: fn(&Path, &Path) -> Result<()>,
}

/// All of them. The last is the largest: 1.5 GB, 2.2 GB unpacked, 59,000 files.
pub const ALL: [Real; 14] = [
    Real::new("debian", debian),
    Real::new("static", static_program),
    Real::new("nginx", nginx),
    Real::new("postgres", postgres),
    Real::new("python", python),
    Real::new("buildah", by_buildah),
    Real::new("forty-layers", forty_layers),
    Real::new("many-files", many_files),
    Real::new("hard-links", hard_links),
    Real::new("opaque", opaque),
    Real::new("attributes", attributes),
    Real::new("names", names),
    Real::new("devices", devices),
    BIG,
];

/// The largest.
pub const BIG: Real = Real::new("big", big);

impl Real {
    const fn new(name: &'static str, make: fn(&Path, &Path) -> Result<()>) -> Self {
        Self { name, make }
    }

    /// The image in skopeo's and umoci's notation, without `oci:`. Made the first time: the services need the network.
    ///
    /// # Errors
    /// One of the programs that make it fails; nothing is kept then.
    pub fn image(self, cache: &Path) -> Result<String> {
        let dir = cached(cache, &format!("real-{}", self.name), RECIPE, |dir| {
            (self.make)(cache, dir)
        })?;
        Ok(format!("{}:image", dir.join("layout").display()))
    }
}

const PATH: &str = "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn debian(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    ok(Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(layers.root())
        .args(mirror()?))?;
    layers.pack()?;
    layers.configure(&["--config.cmd=bash", PATH])
}

impl<'a> Layers<'a> {
    /// On the layers of the `debian` image.
    fn on_debian(cache: &Path, dir: &'a Path) -> Result<Self> {
        let base = Real::new("debian", debian).image(cache)?;
        let base = base.strip_suffix(":image").context("a reference")?;
        // No links: they change the ctime of files that another test may be reading.
        ok(line("cp --archive").arg(base).arg(dir))?;
        let image = format!("{}:image", dir.join("layout").display());
        let layers = Self { dir, image };
        layers.unpack()?;
        Ok(layers)
    }

    /// Adds an archive as it is.
    fn add(&self, archive: &Path) -> Result<()> {
        ok(line("umoci raw add-layer --image")
            .arg(&self.image)
            .arg(archive))?;
        fs::remove_file(archive)?;
        Ok(())
    }
}

/// A layer with packages, and one that removes what is not needed to run them.
fn service(cache: &Path, dir: &Path, packages: &[&str], config: &[&str]) -> Result<()> {
    let layers = Layers::on_debian(cache, dir)?;
    let root = layers.root();
    install(&root, packages)?;
    layers.pack()?;
    fs::remove_file(root.join(POLICY))?;
    fs::remove_file(root.join("etc/resolv.conf"))?;
    for emptied in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(emptied))?;
        fs::create_dir(root.join(emptied))?;
    }
    layers.pack()?;
    layers.configure(&[&[PATH], config].concat())
}

fn nginx(cache: &Path, dir: &Path) -> Result<()> {
    let config = [
        "--config.cmd=nginx",
        "--config.cmd=-g",
        "--config.cmd=daemon off;",
        "--config.exposedports=80/tcp",
        "--config.stopsignal=SIGQUIT",
    ];
    service(cache, dir, &["nginx-light"], &config)
}

fn postgres(cache: &Path, dir: &Path) -> Result<()> {
    let config = [
        "--config.entrypoint=/usr/lib/postgresql/15/bin/postgres",
        "--config.user=postgres",
        "--config.volume=/var/lib/postgresql/data",
        "--config.env=PGDATA=/var/lib/postgresql/data",
        "--config.stopsignal=SIGINT",
    ];
    service(cache, dir, &["postgresql-15"], &config)
}

fn python(cache: &Path, dir: &Path) -> Result<()> {
    service(cache, dir, &["python3"], &["--config.cmd=python3"])
}

/// What distroless images have: one program, certificates, time zones, accounts.
fn static_program(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    for dir in ["bin", "etc/ssl/certs", "usr/share", "home/nonroot", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    fs::copy(Path::new("/").join(bundle), root.join(bundle))?;
    ok(line("cp --archive /usr/share/zoneinfo").arg(root.join("usr/share")))?;
    ok(line("chown 65532:65532").arg(root.join("home/nonroot")))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    layers.pack()?;
    fs::copy("/bin/busybox", root.join("bin/server"))?;
    layers.pack()?;
    layers.configure(&[
        "--config.entrypoint=/bin/server",
        "--config.user=nonroot",
        "--config.env=SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
    ])
}

/// Another program's layers: Debian with what a Containerfile adds, removes and owns.
fn by_buildah(cache: &Path, dir: &Path) -> Result<()> {
    let base = Real::new("debian", debian).image(cache)?;
    let buildah = |words: &str| {
        let mut command = line("buildah --storage-driver=vfs --root");
        command
            .arg(dir.join("storage"))
            .arg("--runroot")
            .arg(dir.join("run"));
        command.args(words.split(' '));
        command
    };
    let context = dir.join("context");
    fs::create_dir(&context)?;
    fs::write(context.join("page"), "a page\n")?;
    fs::write(
        context.join("Containerfile"),
        format!(
            "FROM oci:{base}\n\
             COPY --chown=33:33 --chmod=0640 page /srv/page\n\
             RUN useradd --create-home service && rm -r /usr/share/doc && ln /srv/page /srv/again\n\
             RUN mv /etc/skel /etc/skeleton && chmod 2750 /home/service && touch -d @86400 /srv\n\
             VOLUME /srv/data\n\
             USER service\n\
             WORKDIR /home/service\n\
             CMD [\"bash\"]\n"
        ),
    )?;
    ok(buildah("bud --isolation=chroot --layers --tag made").arg(&context))?;
    let layout = dir.join("layout");
    ok(buildah("push --quiet made").arg(format!("oci:{}:image", layout.display())))?;
    for made in ["storage", "run", "context"] {
        ok(line("rm --recursive --force").arg(dir.join(made)))?;
    }
    Ok(())
}

/// Each layer adds, changes, deletes, and changes what a file is.
fn forty_layers(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    busybox::install(&root)?;
    layers.pack()?;
    for number in 1..40 {
        let (own, before) = (format!("srv/{number}"), format!("srv/{}", number - 1));
        fs::create_dir_all(root.join(&own).join("deep/below"))?;
        fs::write(root.join(&own).join("deep/below/file"), own.repeat(number))?;
        fs::write(root.join("etc/last"), &own)?;
        if number % 3 == 0 {
            fs::remove_dir_all(root.join(&before).join("deep"))?;
        }
        if number % 5 == 0 {
            fs::remove_dir_all(root.join(&before))?;
            symlink(number.to_string(), root.join(&before))?;
        }
        if number % 7 == 0 {
            let owner = format!("{number}:{}", number * 1000);
            ok(line("chown --recursive").arg(owner).arg(root.join(&own)))?;
        }
        layers.pack()?;
    }
    layers.configure(&["--config.cmd=/bin/true"])
}

/// 60,000 files; a second layer deletes some, and owns others.
fn many_files(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    for number in 0..60_500 {
        let dir = root.join(format!("srv/{:03}/{}", number % 300, number % 7));
        if number < 2100 {
            fs::create_dir_all(&dir)?;
        }
        fs::write(
            dir.join(format!("file-{number}")),
            format!("{number}\n").repeat(number % 90),
        )?;
    }
    layers.pack()?;
    for number in 0..500 {
        let dir = root.join(format!("srv/{:03}/{}", number % 300, number % 7));
        fs::remove_file(dir.join(format!("file-{number}")))?;
    }
    ok(line("chown --recursive 7:8").arg(root.join("srv/100")))?;
    layers.pack()?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Links to files of lower layers, also to some that were deleted or replaced under other names.
fn hard_links(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::empty(dir)?;
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("deep"))?;
    for name in ["a", "b", "c", "deep/d"] {
        fs::write(tree.join(name), format!("the file {name}\n"))?;
    }
    symlink("a", tree.join("symlink"))?;
    let sh = |script: &str| ok(line("sh -ec").arg(script).current_dir(&tree));
    sh("mknod device c 1 7; mkfifo fifo; ln a a-too; chown 5:6 b; chmod 6755 b")?;
    let archive = dir.join("layer.tar");
    let tar = |words: &str| {
        ok(line("tar --file ../layer.tar")
            .args(words.split(' '))
            .current_dir(&tree))
    };
    tar("--create .")?;
    layers.add(&archive)?;
    // A layer with the link alone: the target's entry is taken out of the archive.
    sh(
        "ln a a-3; ln b deep/b; ln symlink symlink-too; ln device device-too; ln fifo fifo-too; ln deep/d d",
    )?;
    tar("--create a a-3 b deep/b symlink symlink-too device device-too fifo fifo-too deep/d d")?;
    tar("--delete a b symlink device fifo deep/d")?;
    layers.add(&archive)?;
    // The first name goes, or becomes another file: the others stay what they were.
    sh("touch .wh.a; echo another > new; mv new b; ln a-too a-4; ln c c-too")?;
    tar("--create .wh.a b a-too a-4 c c-too")?;
    tar("--delete a-too")?;
    layers.add(&archive)?;
    fs::remove_dir_all(&tree)?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Opaque directories and whiteouts, as umoci writes them.
fn opaque(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::empty(dir)?;
    let tree = dir.join("tree");
    let fill = |script: &str| -> Result<()> {
        fs::create_dir_all(&tree)?;
        ok(line("sh -ec").arg(script).current_dir(&tree))?;
        Ok(())
    };
    let insert = |words: &str| {
        ok(line("umoci insert --image")
            .arg(&layers.image)
            .args(words.split(' '))
            .current_dir(dir))
    };
    fill(
        "mkdir -p a/b/c d e/f; for n in a a/b a/b/c d e e/f; do echo lower > $n/lower; done; chmod 0700 d",
    )?;
    insert("tree /srv")?;
    fs::remove_dir_all(&tree)?;
    fill("mkdir -p b; echo upper > upper; echo upper > b/upper")?;
    insert("--opaque tree /srv/a")?;
    insert("--whiteout /srv/d/lower")?;
    insert("--whiteout /srv/e")?;
    insert("--opaque tree /srv/e")?;
    fs::remove_dir_all(&tree)?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Extended attributes of all kinds of files, file capabilities, set-user-ID programs.
fn attributes(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    busybox::install(&root)?;
    ok(line("sh -ec")
        .arg(
            "mkdir -p srv/dir; cd srv
             for n in ping server both set-user-id; do cp ../bin/busybox $n; done
             chmod 4755 set-user-id; chmod 2755 server
             setcap cap_net_raw=ep ping
             setcap 'cap_net_bind_service,cap_sys_chroot=eip' server
             setcap cap_dac_read_search=ei both
             setfattr -n user.comment -v 'with \"quotes\" and = signs' both
             setfattr -n user.empty both
             setfattr -n user.binary -v 0x000a0d3dff both
             setfattr -n user.long -v \"$(head -c 2500 /dev/zero | tr '\\0' x)\" server
             setfattr -n trusted.overlay.opaque -v y dir
             setfattr -n trusted.of.root -v yes dir
             setfattr -n security.evm -v 0x0102030405 both
             ln -s both link; setfattr -h -n trusted.link -v yes link
             for i in $(seq 1 40); do echo > same-$i; setfattr -n user.same -v same same-$i; done
             for i in $(seq 1 30); do setfattr -n user.number-$i -v $i dir; done",
        )
        .current_dir(&root))?;
    layers.pack()?;
    // A changed and a removed attribute in a later layer.
    ok(line("sh -ec")
        .arg("setfattr -n user.comment -v changed srv/both; setfattr -x user.same srv/same-7; setcap -r srv/ping")
        .current_dir(&root))?;
    layers.pack()?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Names that are not UTF-8, very long, or look like something else.
fn names(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let srv = layers.root().join("srv");
    fs::create_dir_all(&srv)?;
    let name = |bytes: &[u8]| srv.join(Path::new(std::ffi::OsStr::from_bytes(bytes)));
    for (number, bytes) in [
        &b"latin-1 \xe4\xf6\xfc"[..],
        b"\xff\xfe\xfd",
        b"cut \xe2\x82",
        b"line\nend",
        b"\x01\x02\x1b[31m\x7f",
        b"back\\slash\\x2d",
        b" spaces ",
        b"-rf",
        b"...",
        b"\"quotes' $(true)",
        "snow \u{2603}".as_bytes(),
        "a\u{308}".as_bytes(),
        "\u{e4}".as_bytes(),
        &[b'n'; 255],
        &[0xc3; 255],
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(name(bytes), format!("{number}\n"))?;
    }
    fs::create_dir(name(b"dir\xff"))?;
    fs::write(name(b"dir\xff/file\xfe"), "below\n")?;
    fs::hard_link(name(b"dir\xff/file\xfe"), name(b"link\xfe"))?;
    symlink(
        std::ffi::OsStr::from_bytes(b"dir\xff/../\xfd"),
        name(b"symlink\xff"),
    )?;
    // Longer than what one call to mkdir takes below the cache's own path.
    ok(line("sh -ec")
        .arg("n=$(printf 'd%.0s' $(seq 250)); for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir $n; cd $n; done; echo deep > file")
        .current_dir(&srv))?;
    layers.pack()?;
    fs::remove_file(name(b"\xff\xfe\xfd"))?;
    fs::remove_dir_all(name(b"dir\xff"))?;
    layers.pack()?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Devices, FIFOs, far owners, times at the ends of what squashfs holds, sparse files, empty ones.
fn devices(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::begin(dir)?;
    let root = layers.root();
    ok(line("sh -ec")
        .arg(
            "mkdir -p dev srv/sticky; mknod dev/null c 1 3; mknod dev/far c 4095 1048575; mknod dev/sda b 8 0; mkfifo dev/fifo
             chmod 0000 dev/far; chmod 1777 srv/sticky; cd srv
             truncate -s 300M sparse; printf x | dd of=sparse bs=1 seek=200000000 conv=notrunc status=none
             truncate -s 5M hole; : > empty; printf y > one-byte
             head -c 131072 /dev/urandom > block; head -c 131073 /dev/urandom > block-and-one
             yes | head -c 10000000 > compressible; cp compressible again
             echo > old; echo > late; chown 4000000000:3999999999 old; chown -h 65534:65534 late
             touch -d @0 old; touch -d @4294967295 late; touch -d @1 sticky",
        )
        .current_dir(&root))?;
    layers.pack()?;
    layers.configure(&["--config.cmd=/bin/true"])
}

/// Files of the largest image.
const BIG_FILES: u64 = 59_000;
/// Its layers.
const BIG_LAYERS: u64 = 4;

/// 59,000 files of 2.2 GB in four layers, written as archives without a tree on the disk. Their content is as compressible as
/// programs and libraries are.
fn big(_: &Path, dir: &Path) -> Result<()> {
    let layers = Layers::empty(dir)?;
    let mut content = Content::new();
    for layer in 0..BIG_LAYERS {
        let archive = dir.join("layer.tar");
        let mut tar = tar::Builder::new(BufWriter::new(File::create(&archive)?));
        for dir in ["usr/".to_owned(), format!("usr/{layer}/")] {
            let mut header = big_header(tar::EntryType::Directory, layer);
            header.set_mode(0o755);
            tar.append_data(&mut header, dir, &[][..])?;
        }
        for number in 0..BIG_FILES / BIG_LAYERS {
            let (upper, lower) = (number / 250, number % 250);
            if lower == 0 {
                let mut header = big_header(tar::EntryType::Directory, number);
                header.set_mode(0o755);
                tar.append_data(&mut header, format!("usr/{layer}/{upper}/"), &[][..])?;
            }
            // Most are small, a few are large: half of all bytes.
            let size = match number % 500 {
                0 => 9 << 20,
                _ => 300 + content.below(37_000),
            };
            let mut header = big_header(tar::EntryType::Regular, number);
            header.set_size(size);
            let path = format!("usr/{layer}/{upper}/file-{lower}.so");
            tar.append_data(&mut header, path, content.file(size as usize))?;
        }
        tar.into_inner()?.flush()?;
        layers.add(&archive)?;
    }
    layers.configure(&["--config.cmd=/bin/true"])
}

fn big_header(kind: tar::EntryType, number: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if number.is_multiple_of(9) {
        0o755
    } else {
        0o644
    });
    header.set_uid(number % 3);
    header.set_gid(number % 5);
    header.set_mtime(1_700_000_000 + number);
    header.set_size(0);
    header
}

/// Made-up content, the same at every run: words of a dictionary, and bytes that no compressor gets smaller.
struct Content {
    state: u64,
    words: Vec<u8>,
    file: Vec<u8>,
}

impl Content {
    const WORDS: u64 = 1 << 13;

    fn new() -> Self {
        let mut content = Self {
            state: 0x9e37_79b9_7f4a_7c15,
            words: Vec::new(),
            file: Vec::new(),
        };
        for _ in 0..Self::WORDS / 8 {
            let bytes = content.next().to_le_bytes();
            content.words.extend(bytes);
        }
        content
    }

    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    fn file(&mut self, size: usize) -> &[u8] {
        self.file.clear();
        while self.file.len() < size {
            let random = self.next();
            match random % 8 {
                0..=3 => self.file.extend(random.to_le_bytes()),
                _ => {
                    let start = (random >> 8) as usize % (self.words.len() / 16 - 1) * 16;
                    let length = 4 + (random >> 40) as usize % 12;
                    self.file
                        .extend_from_slice(&self.words[start..start + length]);
                }
            }
        }
        &self.file[..size]
    }
}
