//! Volumes on the running kernel, keys in swtpm. Each test has a mount namespace of its own, which takes its mounts and
//! loop devices with it when the test's thread ends.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use trustme_config::{Config, VolumeBackend};
use trustme_trust::identity::Owner;
use trustme_trust::tpm::{HexDigest, Tpm};
use trustme_trust::volume::{self, Request};

use crate::swtpm::Swtpm;
use crate::{chain, run};

/// Leaves the machine's mount namespace.
pub fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
}

struct Machine {
    swtpm: Swtpm,
    config: Config,
    owner: Owner,
}

impl Machine {
    fn new() -> Self {
        private_mounts();
        let swtpm = Swtpm::start();
        let mut config = Config::default();
        config.tpm.tcti = swtpm.tcti();
        config.volumes.dir = swtpm.path("volumes");
        let owner = Owner {
            name: "nginx".into(),
            signer: HexDigest([5; 32]),
        };
        fs::create_dir_all(swtpm.path("root/var/www")).unwrap();
        Self {
            swtpm,
            config,
            owner,
        }
    }

    fn open_as(&self, owner: &Owner, name: &str) -> Result<PathBuf, String> {
        let root = self.swtpm.path("root");
        let request = Request {
            name,
            size_mib: 16,
            filesystem: "ext4",
            owner,
            content: (&root, "/var/www/html"),
        };
        let target = self.swtpm.path("mnt").join(name);
        volume::open(&self.config, &request, &target).map_err(chain)
    }

    fn open(&self, name: &str) -> Result<PathBuf, String> {
        self.open_as(&self.owner, name)
    }

    fn close(&self, name: &str) {
        run(
            "umount",
            &[self.swtpm.path("mnt").join(name).to_str().unwrap()],
        );
    }

    fn file(&self, name: &str) -> PathBuf {
        self.config.volumes.dir.join("web.html").join(name)
    }
}

/// What `find` sees of a tree: type, mode, owner, links, size, time, target, path.
fn listing(dir: &Path) -> String {
    let format = "%y %m %U:%G %n %T@ %l %P\\n";
    let printed = Command::new("find")
        .args([".", "-printf", format])
        .current_dir(dir)
        .output()
        .unwrap();
    let mut lines: Vec<_> = std::str::from_utf8(&printed.stdout)
        .unwrap()
        .lines()
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[test]
fn what_is_written_is_there_again_and_encrypted_on_disk() {
    let machine = Machine::new();
    let data = machine.open("web.html").unwrap();
    assert_eq!(data, machine.swtpm.path("mnt/web.html/data"));
    fs::write(
        data.join("a-name-in-the-clear"),
        b"A SECRET THAT STANDS NOWHERE ELSE",
    )
    .unwrap();
    machine.close("web.html");

    let image = fs::read(machine.file("volume.img")).unwrap();
    for clear in [b"SECRET THAT STANDS".as_slice(), b"name-in-the-clear"] {
        assert!(!image.windows(clear.len()).any(|window| window == clear));
    }
    assert_eq!(image.len(), 16 << 20);
    assert!(
        fs::metadata(machine.file("volume.img")).unwrap().blocks() * 512 < 4 << 20,
        "not sparse"
    );
    for (path, mode) in [("volume.img", 0o600), ("sealed.json", 0o600), (".", 0o700)] {
        assert_eq!(
            fs::metadata(machine.file(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            mode,
            "{path}"
        );
    }

    let data = machine.open("web.html").unwrap();
    assert_eq!(
        fs::read(data.join("a-name-in-the-clear")).unwrap(),
        b"A SECRET THAT STANDS NOWHERE ELSE"
    );
    let attributes = run("lsattr", &["-d", data.to_str().unwrap()]);
    assert!(
        attributes.split(' ').next().unwrap().contains('E'),
        "{attributes}"
    );
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains("/mnt/web.html "))
        .unwrap();
    assert!(line.contains("nosuid,nodev"), "{line}");
}

#[test]
fn a_new_volume_begins_with_what_the_image_has() {
    let machine = Machine::new();
    let root = machine.swtpm.path("root");
    let html = root.join("srv/html");
    fs::create_dir_all(html.join("deep/er")).unwrap();
    // The mount point is reached through a symlink that must be followed inside the root only.
    symlink("/srv/html", root.join("var/www/html")).unwrap();
    fs::write(html.join("index.html"), "hello").unwrap();
    fs::write(html.join("deep/er/prog"), vec![7; 100_000]).unwrap();
    fs::hard_link(html.join("index.html"), html.join("deep/again")).unwrap();
    symlink("../index.html", html.join("deep/link")).unwrap();
    symlink("/etc/passwd", html.join("outside")).unwrap();
    run(
        "mkfifo",
        &["-m", "640", html.join("fifo").to_str().unwrap()],
    );
    run(
        "setcap",
        &[
            "cap_net_raw+ep",
            html.join("deep/er/prog").to_str().unwrap(),
        ],
    );
    run(
        "setfattr",
        &["-n", "user.note", "-v", "x", html.to_str().unwrap()],
    );
    run(
        "chown",
        &["-h", "33:34", html.join("outside").to_str().unwrap()],
    );
    run("chown", &["1000:1001", html.join("deep").to_str().unwrap()]);
    run("chmod", &["3751", html.join("deep").to_str().unwrap()]);
    run("chmod", &["0770", html.to_str().unwrap()]);
    for path in ["index.html", "deep/er", "deep", "outside", "."] {
        run(
            "touch",
            &[
                "-h",
                "-d",
                "2001-02-03 04:05:06.789",
                html.join(path).to_str().unwrap(),
            ],
        );
    }
    let data = machine.open("web.html").unwrap();
    assert_eq!(listing(&data), listing(&html));
    assert_eq!(
        fs::read(data.join("deep/er/prog")).unwrap(),
        vec![7; 100_000]
    );
    assert_eq!(
        fs::metadata(data.join("index.html")).unwrap().ino(),
        fs::metadata(data.join("deep/again")).unwrap().ino()
    );
    assert!(
        run("getcap", &[data.join("deep/er/prog").to_str().unwrap()]).contains("cap_net_raw=ep")
    );
    assert!(
        run("getfattr", &["-n", "user.note", data.to_str().unwrap()]).contains("user.note=\"x\"")
    );

    // Later the volume is the container's: what the image has is not copied again.
    fs::remove_file(data.join("index.html")).unwrap();
    machine.close("web.html");
    let data = machine.open("web.html").unwrap();
    assert!(!data.join("index.html").exists());
}

#[test]
fn a_volume_opens_for_its_owner_in_its_boot_state_only() {
    let mut machine = Machine::new();
    machine.open("web.html").unwrap();
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.starts_with("volume web.html: in use: its image is attached to /dev/loop"),
        "{error}"
    );
    let listed = volume::list(&machine.config).unwrap();
    assert_eq!(listed.len(), 1);
    let at = format!(" at {}", machine.swtpm.path("mnt/web.html").display());
    assert!(
        listed[0].open.as_ref().unwrap().ends_with(&at),
        "{listed:?}"
    );
    assert_eq!(listed[0].sealed.as_ref().unwrap().owner, machine.owner);
    machine.close("web.html");
    assert_eq!(volume::list(&machine.config).unwrap()[0].open, None);

    let other = Owner {
        name: "apache".into(),
        ..machine.owner.clone()
    };
    let error = machine.open_as(&other, "web.html").unwrap_err();
    assert_eq!(
        error,
        format!(
            "volume web.html: belongs to GuestOS nginx signed by the key {}",
            "05".repeat(32)
        )
    );

    // The same lie in the file: the identity digest tells.
    let text = fs::read_to_string(machine.file("sealed.json")).unwrap();
    fs::write(machine.file("sealed.json"), text.replace("nginx", "apache")).unwrap();
    let error = machine.open_as(&other, "web.html").unwrap_err();
    assert!(
        error.starts_with("volume web.html: sealed for another container: identity "),
        "{error}"
    );
    fs::write(machine.file("sealed.json"), &text).unwrap();

    Tpm::connect(&machine.swtpm.tcti())
        .unwrap()
        .extend(7, &[1; 32])
        .unwrap();
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.starts_with("volume web.html: PCR 7 differs from the sealed value: sealed 0000"),
        "{error}"
    );

    machine.swtpm.reboot();
    machine.open("web.html").unwrap();
}

#[test]
fn a_tampered_volume_is_refused_and_left_closed() {
    let machine = Machine::new();
    machine.open("web.html").unwrap();
    machine.close("web.html");
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let path = machine.file("sealed.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let blob = json["key"]["private"].as_str().unwrap().to_owned();
    let flipped = match blob.as_bytes()[40] {
        b'A' => "B",
        _ => "A",
    };
    json["key"]["private"] = format!("{}{flipped}{}", &blob[..40], &blob[41..]).into();
    let cases = [
        (json.to_string(), "cannot load the sealed secret"),
        (
            text.replace("\"version\": 1", "\"version\": 2"),
            "version 2 with backend \"fscrypt\"",
        ),
        (
            text.replace("\"owner\"", "\"ownr\""),
            "unknown field `ownr`",
        ),
        (text[..text.len() / 2].to_owned(), "EOF while parsing"),
        (" ".repeat(1 << 17), "larger than 65536 bytes"),
    ];
    for (tampered, reason) in cases {
        fs::write(&path, tampered).unwrap();
        let error = machine.open("web.html").unwrap_err();
        assert!(
            error.starts_with("volume web.html: ") && error.contains(reason),
            "{error:?} has no {reason:?}"
        );
    }
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    let listed = volume::list(&machine.config).unwrap();
    assert!(
        listed[0].damage.as_ref().unwrap().contains("sealed.json: "),
        "{listed:?}"
    );
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.contains("sealed.json: ") && error.contains("symbolic links"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    fs::write(&path, &text).unwrap();

    // An image with a directory in the clear, in the hope that the container writes its secrets into it.
    let image = machine.file("volume.img");
    fs::rename(&image, machine.file("kept.img")).unwrap();
    let name = image.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-O", "encrypt", name, "8M"]);
    let elsewhere = machine.swtpm.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    run("mount", &["-o", "loop", name, elsewhere.to_str().unwrap()]);
    fs::create_dir(elsewhere.join("data")).unwrap();
    run("umount", &[elsewhere.to_str().unwrap()]);
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.contains("is not encrypted with the volume's key"),
        "{error}"
    );
    fs::write(&image, b"no file system").unwrap();
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.contains("mount ") && error.contains("volume.img: "),
        "{error}"
    );
    fs::remove_file(&image).unwrap();
    let error = machine.open("web.html").unwrap_err();
    assert!(error.contains("volume.img: No such file"), "{error}");
    assert_eq!(
        fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
        mounts
    );

    fs::rename(machine.file("kept.img"), &image).unwrap();
    machine.open("web.html").unwrap();
}

#[test]
fn a_volume_that_cannot_be_made_leaves_nothing() {
    let mut machine = Machine::new();
    for name in ["", "../x", ".hidden", "a/b"] {
        let error = machine.open(name).unwrap_err();
        assert!(error.contains("a name may hold"), "{name}: {error}");
    }
    // More than 16 MiB of content.
    let html = machine.swtpm.path("root/var/www/html");
    fs::create_dir_all(&html).unwrap();
    fs::write(html.join("large"), vec![1; 20 << 20]).unwrap();
    let error = machine.open("web.html").unwrap_err();
    assert!(
        error.contains("copy the image's /var/www/html: ./large: No space left"),
        "{error}"
    );
    fs::remove_file(html.join("large")).unwrap();

    machine.swtpm.stop();
    let error = machine.open("web.html").unwrap_err();
    assert!(error.starts_with("volume web.html: TPM at "), "{error}");
    machine.config.tpm.tcti = "none".into();
    let error = machine.open("web.html").unwrap_err();
    assert_eq!(
        error,
        "volume web.html: its key has to be sealed in a TPM, and tpm.tcti is \"none\""
    );
    machine.config.volumes.backend = VolumeBackend::Luks2;
    let error = machine.open("web.html").unwrap_err();
    assert!(error.contains("volumes.backend is luks2"), "{error}");

    let left: Vec<_> = fs::read_dir(&machine.config.volumes.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".web.html.lock"]);
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains("/mnt/web.html"), "{mounts}");
}

#[test]
fn what_a_killed_launch_left_is_replaced() {
    let machine = Machine::new();
    let half_made = machine
        .config
        .volumes
        .dir
        .join("web.html.new-0123456789abcdef");
    fs::create_dir_all(&half_made).unwrap();
    fs::write(half_made.join("volume.img"), b"half").unwrap();
    machine.open("web.html").unwrap();
    assert!(!half_made.exists());
}
