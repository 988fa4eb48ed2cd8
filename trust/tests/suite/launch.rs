//! Launches of a GuestOS on the running kernel: what is mounted, measured, refused, and left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use trustme_config::{Config, LaunchMode};
use trustme_trust::launch::{self, LaunchError, State};
use trustme_trust::log::{Content, Verdict, load, verify};
use trustme_trust::policy::floor;
use trustme_trust::{log, volume};

use crate::bundle::Bundle;
use crate::swtpm::Swtpm;
use crate::volume::private_mounts;
use crate::{chain, run};

struct Machine {
    swtpm: Swtpm,
    config: Config,
    bundle: Bundle,
}

impl Machine {
    fn new(mode: LaunchMode) -> Self {
        private_mounts();
        let swtpm = Swtpm::start();
        let dir = swtpm.path("store");
        fs::create_dir(&dir).unwrap();
        let bundle = Bundle::make(&dir);
        let mut config = Config::default();
        config.launch.mode = mode;
        config.launch.anchors = bundle.anchor();
        config.launch.floors = swtpm.path("floors");
        config.tpm.tcti = swtpm.tcti();
        config.log.path = swtpm.path("measure.log");
        config.volumes.dir = swtpm.path("volumes");
        Self {
            swtpm,
            config,
            bundle,
        }
    }

    /// The configuration that the GuestOS grants.
    fn spec(&self) -> Value {
        self.bundle.granted()
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.swtpm.path(&format!("@launch/{id}"))
    }

    fn launch_as(&self, id: &str, spec: &Value) -> Result<Value, LaunchError> {
        let dir = self.dir(id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        let state = State {
            id: id.to_owned(),
            bundle: self.swtpm.path("caller"),
        };
        launch::launch(&self.config, &dir, &state)?;
        let written = fs::read(dir.join("bundle/config.json")).unwrap();
        Ok(serde_json::from_slice(&written).unwrap())
    }

    fn launch(&self) -> Result<Value, LaunchError> {
        self.launch_as("web", &self.spec())
    }

    fn release(&self, id: &str) {
        launch::release(&self.dir(id)).unwrap();
        assert!(!self.dir(id).exists());
        assert_eq!(self.mounts(), [""; 0]);
    }

    /// The mounts below the launch directories.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours = |line: &&str| line.contains(self.swtpm.path("@launch").to_str().unwrap());
        table.lines().filter(ours).map(str::to_owned).collect()
    }

    /// What the refusal says; no container could be built, and nothing was mounted.
    fn refused(&self, spec: &Value) -> String {
        let error = self.launch_as("web", spec).unwrap_err();
        assert!(!self.dir("web").join("bundle").exists());
        assert_eq!(self.mounts(), [""; 0]);
        self.release("web");
        chain(error)
    }
}

/// A JSON value, changed at a pointer.
fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    *value.pointer_mut(pointer).unwrap() = new;
    value
}

#[test]
fn a_trusted_guestos_starts_with_its_root_and_volume() {
    let machine = Machine::new(LaunchMode::Enforce);
    let spec = machine.launch().unwrap();
    let root = PathBuf::from(spec["root"]["path"].as_str().unwrap());
    assert_eq!(root, machine.dir("web").join("mnt/root"));
    assert_eq!(
        fs::read_to_string(root.join("var/www/html/index.html")).unwrap(),
        "hello\n"
    );
    fs::write(root.join("etc/written"), "by the container").unwrap();
    let mount = spec["mounts"].as_array().unwrap().last().unwrap();
    let data = machine.dir("web").join("mnt/volumes/web.html/data");
    let expected = json!({
        "destination": "/var/www/html", "type": "bind", "source": data, "options": ["bind", "rw", "nosuid", "nodev"]
    });
    assert_eq!(*mount, expected);
    assert_eq!(
        fs::read_to_string(data.join("index.html")).unwrap(),
        "hello\n"
    );
    fs::write(data.join("page"), "kept").unwrap();
    let lower = machine
        .mounts()
        .into_iter()
        .find(|line| line.contains("/mnt/lower "))
        .unwrap();
    assert!(
        lower.contains(" ro,nodev") && lower.contains(" - squashfs /dev/loop"),
        "{lower}"
    );

    // Log and chip: the image PCR holds the bare digest of the image.
    let report = verify(&machine.config).unwrap();
    assert_eq!(report.state, log::State::Complete);
    let image: [u8; 32] = hex::decode(machine.bundle.sha256("nginx-1/root.img"))
        .unwrap()
        .try_into()
        .unwrap();
    let expected = trustme_trust::tpm::extended(&[0; 32], &image);
    assert_eq!(machine.swtpm.pcr(11), hex::encode(expected));
    assert_eq!(machine.swtpm.pcr(13), report.pcrs[1].expected.to_string());
    let log = load(&machine.config.log.path).unwrap();
    let Content::Image(subject) = &log.records[1].content else {
        panic!("{log:?}")
    };
    assert_eq!(
        (subject.verdict, subject.reason.as_deref()),
        (Verdict::Trusted, None)
    );
    assert_eq!(subject.name.as_deref(), Some("nginx"));
    assert!(subject.signer.as_ref().unwrap().subject.contains("signer"));

    machine.release("web");
    machine.release("web");
    assert_eq!(volume::list(&machine.config).unwrap()[0].open, None);

    // Again: what was written to the volume is there, to the root not, and nothing new is measured.
    let spec = machine.launch().unwrap();
    assert_eq!(fs::read_to_string(data.join("page")).unwrap(), "kept");
    assert!(
        !Path::new(spec["root"]["path"].as_str().unwrap())
            .join("etc/written")
            .exists()
    );
    assert_eq!(load(&machine.config.log.path).unwrap(), log);
    machine.release("web");
}

#[test]
fn a_flipped_bit_anywhere_is_refused_by_name() {
    let machine = Machine::new(LaunchMode::Enforce);
    let spec = machine.spec();
    let last = |name: &str| fs::metadata(machine.bundle.file(name)).unwrap().len() as usize - 1;
    let text = fs::read_to_string(&machine.bundle.conf).unwrap();
    let mut places = vec![
        ("nginx-1.conf", text.find("a test").unwrap()),
        ("nginx-1.sig", 100),
        ("nginx-1/config.img", 2),
        ("nginx-1/config.img", last("nginx-1/config.img")),
    ];
    for name in ["nginx-1/root.img", "nginx-1/root.hash.img"] {
        let end = last(name);
        places.extend((0..=8).map(|eighth| (name, end * eighth / 8)));
    }
    for (name, place) in places {
        machine.bundle.flip(name, place);
        eprintln!("bit of byte {place} of {name}");
        let error = machine.refused(&spec);
        let path = machine.bundle.file(name).display().to_string();
        assert!(error.contains(&path), "{error}");
        machine.bundle.flip(name, place);
    }
    // A certificate of somebody else with the same name; a missing one; a truncated image.
    let cert = machine.bundle.file("nginx-1.cert");
    let kept = fs::read(&cert).unwrap();
    fs::copy(machine.bundle.anchor(), &cert).unwrap();
    assert!(machine.refused(&spec).contains("nginx-1."));
    fs::remove_file(&cert).unwrap();
    assert!(machine.refused(&spec).contains(&cert.display().to_string()));
    fs::write(&cert, kept).unwrap();
    let image = machine.bundle.file("nginx-1/root.img");
    let kept = fs::read(&image).unwrap();
    fs::write(&image, &kept[..kept.len() - 1]).unwrap();
    assert!(
        machine
            .refused(&spec)
            .contains(&image.display().to_string())
    );
    fs::write(&image, kept).unwrap();
    machine.launch().unwrap();
    machine.release("web");
}

#[test]
fn measure_starts_what_is_not_trusted_and_says_why() {
    let machine = Machine::new(LaunchMode::Measure);
    let spec = machine.spec();
    let records = |machine: &Machine| load(&machine.config.log.path).unwrap().records;
    let cases = [
        ("nginx-1.conf", 9_usize),
        ("nginx-1.sig", 9),
        ("nginx-1/root.hash.img", 5000),
        ("nginx-1/config.img", 2),
    ];
    for (name, place) in cases {
        let place = match name {
            "nginx-1.conf" => fs::read_to_string(&machine.bundle.conf)
                .unwrap()
                .find("a test")
                .unwrap(),
            _ => place,
        };
        machine.bundle.flip(name, place);
        machine.launch_as("web", &spec).unwrap();
        machine.release("web");
        let last = records(&machine).pop().unwrap();
        let Content::Configuration(subject) = last.content else {
            panic!("{last:?}")
        };
        assert_eq!(subject.verdict, Verdict::Untrusted);
        let path = machine.bundle.file(name).display().to_string();
        assert!(
            subject.reason.as_ref().unwrap().contains(&path),
            "{subject:?}"
        );
        machine.bundle.flip(name, place);
    }
    // What is measured of a changed image is what is mounted.
    let image = "nginx-1/root.img";
    let place = fs::metadata(machine.bundle.file(image)).unwrap().len() as usize - 5000;
    machine.bundle.flip(image, place);
    let digest = machine.bundle.sha256(image);
    machine.launch_as("web", &spec).unwrap();
    machine.release("web");
    let all = records(&machine);
    assert!(
        all.iter()
            .any(|record| matches!(record.content, Content::Image(_))
                && record.digests[0].digest.to_string() == digest)
    );
    machine.bundle.flip(image, place);

    let more = with(spec.clone(), "/process/args", json!(["sh"]));
    machine.launch_as("web", &more).unwrap();
    machine.release("web");
    let last = records(&machine).pop().unwrap();
    let Content::Configuration(subject) = last.content else {
        panic!("{last:?}")
    };
    assert!(
        subject
            .reason
            .unwrap()
            .contains("config.json: process.args: [\"sh\"], granted is [\"nginx\"]")
    );
    assert_eq!(verify(&machine.config).unwrap().state, log::State::Complete);
}

#[test]
fn an_untrusted_guestos_gets_no_volume() {
    let mut machine = Machine::new(LaunchMode::Enforce);
    machine.launch().unwrap();
    machine.release("web");
    machine.config.launch.mode = LaunchMode::Measure;
    machine.bundle.flip("nginx-1.sig", 9);
    let spec = machine.launch().unwrap();
    let mounted = spec["mounts"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(mounted["destination"], "/var/www/html");
    assert_eq!(mounted["options"], json!(["bind", "ro", "nosuid", "nodev"]));
    let content = Path::new(mounted["source"].as_str().unwrap()).join("index.html");
    assert_eq!(
        fs::read_to_string(content).unwrap(),
        "hello\n",
        "the image's, not the volume's"
    );
    assert_eq!(volume::list(&machine.config).unwrap()[0].open, None);
    machine.release("web");
    machine.bundle.flip("nginx-1.sig", 9);
    machine.launch().unwrap();
    machine.release("web");
}

#[test]
fn enforce_grants_nothing_beyond_what_is_signed() {
    let machine = Machine::new(LaunchMode::Enforce);
    let spec = machine.spec();
    for (pointer, value, reason) in [
        (
            "/process/args",
            json!(["sh"]),
            "config.json: process.args: [\"sh\"], granted is [\"nginx\"]",
        ),
        (
            "/process/noNewPrivileges",
            json!(false),
            "config.json: process.noNewPrivileges: has to be true",
        ),
        (
            "/linux/seccomp",
            Value::Null,
            "config.json: linux.seccomp: absent, granted is ",
        ),
        (
            "/linux/maskedPaths",
            json!([]),
            "config.json: linux.maskedPaths: ",
        ),
    ] {
        let error = machine.refused(&with(spec.clone(), pointer, value));
        assert!(
            error.starts_with("refused: ") && error.contains(reason),
            "{error}"
        );
    }
    let mut more = spec.clone();
    more["process"]["capabilities"]["bounding"]
        .as_array_mut()
        .unwrap()
        .push("CAP_SYS_ADMIN".into());
    assert!(
        machine
            .refused(&more)
            .contains("process.capabilities.bounding: \"CAP_SYS_ADMIN\" is not granted")
    );
    let mut more = spec.clone();
    let bind = json!({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]});
    more["mounts"].as_array_mut().unwrap().push(bind);
    assert!(
        machine
            .refused(&more)
            .contains("config.json: mounts: {\"destination\":\"/host\"")
    );
    let mut more = spec.clone();
    more["hooks"] = json!({"prestart": [{"path": "/bin/sh"}]});
    assert!(machine.refused(&more).contains("config.json: hooks: "));

    floor::write(&machine.config.launch.floors, "nginx", 2).unwrap();
    let error = machine.refused(&spec);
    assert!(
        error.contains("version 1 is below the rollback floor 2"),
        "{error}"
    );
    floor::write(&machine.config.launch.floors, "nginx", 1).unwrap();
    machine.launch().unwrap();
    machine.release("web");

    machine
        .bundle
        .rewrite("hardware: \"x86\"", "hardware: \"riscv\"");
    let error = machine.refused(&spec);
    assert!(error.contains("hardware \"riscv\""), "{error}");
}

#[test]
fn a_changed_boot_state_or_sealed_key_is_refused() {
    let machine = Machine::new(LaunchMode::Enforce);
    machine.launch().unwrap();
    // The same volume for another launch, which some other state directory of the runtime allows.
    let other = machine.swtpm.path("@launch/other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("config.json"), machine.spec().to_string()).unwrap();
    let state = State {
        id: "web".to_owned(),
        bundle: machine.swtpm.path("caller"),
    };
    let error = chain(launch::launch(&machine.config, &other, &state).unwrap_err());
    assert!(error.starts_with("volume web.html: in use: "), "{error}");
    launch::release(&other).unwrap();
    machine.release("web");

    let sealed = machine.config.volumes.dir.join("web.html/sealed.json");
    let kept = fs::read_to_string(&sealed).unwrap();
    let mut json: Value = serde_json::from_str(&kept).unwrap();
    let blob = json["key"]["private"].as_str().unwrap().to_owned();
    let flipped = if &blob[50..51] == "A" { "B" } else { "A" };
    json["key"]["private"] = format!("{}{flipped}{}", &blob[..50], &blob[51..]).into();
    fs::write(&sealed, json.to_string()).unwrap();
    let error = chain(machine.launch().unwrap_err());
    assert!(
        error.starts_with("volume web.html: TPM at ") && error.contains("load the sealed secret"),
        "{error}"
    );
    machine.release("web");
    fs::write(&sealed, kept).unwrap();

    trustme_trust::tpm::Tpm::connect(&machine.swtpm.tcti())
        .unwrap()
        .extend(7, &[1; 32])
        .unwrap();
    let error = chain(machine.launch().unwrap_err());
    assert!(
        error.starts_with("volume web.html: PCR 7 differs from the sealed value: sealed 0000"),
        "{error}"
    );
    machine.release("web");
}

#[test]
fn a_certificate_that_has_expired_is_refused() {
    let machine = Machine::new(LaunchMode::Enforce);
    // Debian's faketime is not needed: the certificate is made in the past.
    let path = |name: &str| machine.bundle.file(name).display().to_string();
    let past = SystemTime::now() - Duration::from_secs(100 * 86_400);
    let day = |days: u64| {
        let seconds = (past + Duration::from_secs(days * 86_400))
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        run(
            "date",
            &[
                "-u",
                "-d",
                &format!("@{}", seconds.as_secs()),
                "+%y%m%d%H%M%SZ",
            ],
        )
        .trim()
        .to_owned()
    };
    run(
        "openssl",
        &[
            "req",
            "-new",
            "-key",
            &path("leaf.key"),
            "-subj",
            "/CN=signer",
            "-out",
            &path("leaf.csr"),
        ],
    );
    fs::write(
        path("ca.conf"),
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n\
        default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n",
    )
    .unwrap();
    let dir = machine.bundle.file("ca");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("index"), "").unwrap();
    fs::write(dir.join("serial"), "01\n").unwrap();
    let status = std::process::Command::new("openssl")
        .args([
            "ca",
            "-batch",
            "-notext",
            "-config",
            &path("ca.conf"),
            "-cert",
            &path("root.cert"),
            "-keyfile",
            &path("root.key"),
        ])
        .args([
            "-in",
            &path("leaf.csr"),
            "-out",
            &path("nginx-1.cert"),
            "-startdate",
            &day(0),
            "-enddate",
            &day(50),
        ])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    let error = machine.refused(&machine.spec());
    assert!(error.contains("expired"), "{error}");
}
