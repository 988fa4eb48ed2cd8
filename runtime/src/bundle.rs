//! The bundle's configuration: read once, checked, and adapted to what libcontainer expects.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxBuilder, Process, Spec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// A configuration is not read beyond this (docs/architecture.md).
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The value of HOME that the executor replaces inside of the container: libcontainer would ask the C library, which
/// loads name service modules from the container's root file system into the runtime.
pub const HOME_TO_BE_FOUND: &str = "\u{1}home";

/// Resolves the caller's bundle directory and makes it the current directory, as runc does: relative sources of bind
/// mounts start there.
///
/// # Errors
/// If it is no directory.
pub fn enter(bundle: &Path) -> Result<PathBuf> {
    let name = bundle.display();
    rustix::process::chdir(bundle)
        .map_err(std::io::Error::from)
        .with_context(|| format!("chdir {name}"))?;
    std::env::current_dir().with_context(|| format!("cannot resolve {name}"))
}

/// Reads `dir/config.json`: opened once, never through a symbolic link, at most 16 MiB.
///
/// # Errors
/// If it is missing, no regular file or too large.
pub fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("config.json");
    let name = path.display();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(Errno::NOENT) => bail!("JSON specification file {name} not found"),
        Err(Errno::LOOP) => bail!("{name} is a symbolic link"),
        other => other.with_context(|| format!("cannot open {name}"))?,
    };
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        bail!("{name} is no regular file");
    }
    let mut bytes =
        Vec::with_capacity((stat.st_size.max(0) as usize).min(MAX_CONFIG_BYTES as usize) + 1);
    std::fs::File::from(file)
        .take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        bail!("{name} is larger than {} MiB", MAX_CONFIG_BYTES >> 20);
    }
    Ok(bytes)
}

/// Parses a configuration that was read from `dir/config.json`.
///
/// # Errors
/// Names the file, line and column of what is wrong.
pub fn parse(bytes: &[u8], dir: &Path) -> Result<Spec> {
    let name = || dir.join("config.json").display().to_string();
    if !names_scheduler_flags(bytes) {
        return serde_json::from_slice(bytes).with_context(name);
    }
    let mut json: serde_json::Value = serde_json::from_slice(bytes).with_context(name)?;
    if let Some(process) = json.get_mut("process") {
        respell_scheduler_flags(process);
    }
    serde_json::from_value(json).with_context(name)
}

/// Parses a process that was read from `file`, of `exec --process`.
///
/// # Errors
/// Names the file, line and column of what is wrong.
pub fn parse_process(bytes: &[u8], file: &Path) -> Result<Process> {
    let name = || file.display().to_string();
    if !names_scheduler_flags(bytes) {
        return serde_json::from_slice(bytes).with_context(name);
    }
    let mut json: serde_json::Value = serde_json::from_slice(bytes).with_context(name)?;
    respell_scheduler_flags(&mut json);
    serde_json::from_value(json).with_context(name)
}

/// Flags of the specification that oci-spec 0.10 knows by another name only.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

fn names_scheduler_flags(bytes: &[u8]) -> bool {
    let prefix = b"SCHED_FLAG_";
    bytes.windows(prefix.len()).any(|window| window == prefix)
}

fn respell_scheduler_flags(process: &mut serde_json::Value) {
    let flags = process.pointer_mut("/scheduler/flags");
    for flag in flags
        .and_then(|flags| flags.as_array_mut())
        .into_iter()
        .flatten()
    {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name);
        if let Some((_, name)) = known {
            *flag = (*name).into();
        }
    }
}

/// Checks what the specification demands of a configuration before anything is made of it.
///
/// # Errors
/// Names the property that is wrong.
pub fn check(spec: &Spec) -> Result<()> {
    let version = spec.version();
    let numbers: Vec<_> = version
        .split(['.', '-', '+'])
        .take(3)
        .map(str::parse::<u32>)
        .collect();
    if numbers.len() != 3 || numbers[0] != Ok(1) || numbers.iter().any(Result::is_err) {
        bail!("ociVersion {version:?} is not supported: expected 1.x.y");
    }
    check_process(
        spec.process()
            .as_ref()
            .context("process property must not be empty")?,
    )?;
    if spec.root().is_none() {
        bail!("root property must not be empty");
    }
    if let Some(mounts) = spec.mounts()
        && let Some(mount) = mounts
            .iter()
            .find(|mount| mount.destination().as_os_str().is_empty())
    {
        bail!("mount of {:?} has no destination", mount.source());
    }
    refuse_twice_named_namespaces(spec)?;
    libcontainer::validator::Validator::validate_spec(spec)?;
    let syscall = libcontainer::syscall::syscall::create_syscall();
    libcontainer::utils::validate_spec_for_new_user_ns(spec, &*syscall)?;
    if spec
        .linux()
        .as_ref()
        .is_some_and(|linux| linux.net_devices().is_some())
    {
        libcontainer::utils::validate_spec_for_net_devices(spec, &*syscall)?;
    }
    Ok(())
}

/// The specification demands an error; libcontainer would take the last one.
fn refuse_twice_named_namespaces(spec: &Spec) -> Result<()> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let mut kinds = Vec::new();
    for namespace in namespaces.into_iter().flatten() {
        let kind = namespace.typ();
        if kinds.contains(&kind) {
            let name = serde_json::to_string(&kind)?;
            bail!("linux.namespaces: {name} is named twice");
        }
        kinds.push(kind);
    }
    Ok(())
}

/// Checks a process, also that of `exec --process`.
///
/// # Errors
/// Names the property that is wrong.
pub fn check_process(process: &Process) -> Result<()> {
    if process.cwd().as_os_str().is_empty() {
        bail!("cwd property must not be empty");
    }
    if !process.cwd().is_absolute() {
        bail!("cwd must be an absolute path");
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("args must not be empty");
    }
    if process.apparmor_profile().is_some() && !libcontainer::apparmor::is_enabled()? {
        bail!("apparmor profile is specified in the configuration, but AppArmor is not enabled");
    }
    if process.selinux_label().is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        bail!(
            "SELinux label is specified in the configuration, but SELinux is disabled or not supported"
        );
    }
    Ok(())
}

/// Rewrites what libcontainer would take differently from runc (docs/libcontainer.md).
///
/// # Errors
/// If the root file system does not exist.
pub fn adapt(spec: &mut Spec, bundle: &Path, id: &str) -> Result<()> {
    let root = spec
        .root_mut()
        .as_mut()
        .context("root property must not be empty")?;
    let path = bundle.join(root.path());
    let path = path
        .canonicalize()
        .with_context(|| format!("invalid rootfs {}", path.display()))?;
    root.set_path(path);
    if spec.linux().is_none() {
        spec.set_linux(Some(LinuxBuilder::default().build()?));
    }
    let linux = spec
        .linux_mut()
        .as_mut()
        .context("linux property must not be empty")?;
    if linux.cgroups_path().is_none() {
        linux.set_cgroups_path(Some(Path::new("/").join(id)));
    }
    // libcontainer always changes the propagation of the whole tree.
    if let Some(rest) = linux
        .rootfs_propagation()
        .as_deref()
        .and_then(|name| name.strip_prefix('r'))
    {
        let plain = rest.to_owned();
        linux.set_rootfs_propagation(Some(plain));
    }
    if let Some(process) = spec.process_mut() {
        adapt_process(process);
    }
    Ok(())
}

/// Rewrites what libcontainer would take differently from runc in a process.
pub fn adapt_process(process: &mut Process) {
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|entry| {
        entry
            .strip_prefix("HOME=")
            .is_some_and(|home| !home.is_empty())
    }) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={HOME_TO_BE_FOUND}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> Spec {
        serde_json::from_value(json).unwrap()
    }

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "uts"}]},
            "mounts": [],
        })
    }

    #[test]
    fn a_configuration_is_a_small_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let reason = |expected: &str| {
            let err = format!("{:#}", read_config(dir.path()).unwrap_err());
            assert!(err.contains(expected), "{err}");
        };
        reason("not found");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        reason("symbolic link");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        reason("no regular file");
        std::fs::remove_file(&path).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_CONFIG_BYTES + 1).unwrap();
        reason("larger than 16 MiB");
        file.set_len(2).unwrap();
        assert_eq!(read_config(dir.path()).unwrap(), [0, 0]);
    }

    #[test]
    fn errors_of_syntax_name_the_place() {
        let err = format!(
            "{:#}",
            parse(b"{\n \"ociVersion\": }", Path::new("/b")).unwrap_err()
        );
        assert!(
            err.contains("/b/config.json") && err.contains("line 2 column 16"),
            "{err}"
        );
    }

    #[test]
    fn scheduler_flags_have_the_names_of_the_specification() {
        let mut json = minimal();
        json["process"]["scheduler"] = serde_json::json!({
            "policy": "SCHED_OTHER",
            "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY"],
        });
        let spec = parse(json.to_string().as_bytes(), Path::new("/b")).unwrap();
        let process = spec.process().clone().unwrap();
        assert_eq!(
            process
                .scheduler()
                .as_ref()
                .unwrap()
                .flags()
                .as_ref()
                .unwrap()
                .len(),
            3
        );
        let alone = json["process"].to_string();
        assert_eq!(
            parse_process(alone.as_bytes(), Path::new("p")).unwrap(),
            process
        );
    }

    #[test]
    fn wrong_properties_are_named() {
        check(&spec(minimal())).unwrap();
        for (pointer, value, expected) in [
            ("/ociVersion", "2.0.0".into(), "ociVersion"),
            ("/ociVersion", "1.0".into(), "ociVersion"),
            ("/process/cwd", "tmp".into(), "cwd must be an absolute path"),
            (
                "/process/args",
                serde_json::json!([]),
                "args must not be empty",
            ),
            ("/process", serde_json::Value::Null, "process property"),
            ("/root", serde_json::Value::Null, "root property"),
            (
                "/linux/namespaces",
                serde_json::json!([{"type": "mount"}, {"type": "uts"}, {"type": "mount"}]),
                "\"mount\" is named twice",
            ),
        ] {
            let mut json = minimal();
            *json.pointer_mut(pointer).unwrap() = value;
            let err = format!("{:#}", check(&spec(json)).unwrap_err());
            assert!(err.contains(expected), "{err}");
        }
    }

    #[test]
    fn adaption_fills_in_what_libcontainer_needs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let mut json = minimal();
        json["linux"]["rootfsPropagation"] = "rslave".into();
        let mut spec = spec(json);
        adapt(&mut spec, dir.path(), "abc").unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/abc")));
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("slave"));
        let process = spec.process().as_ref().unwrap();
        assert!(
            process
                .env()
                .as_ref()
                .unwrap()
                .iter()
                .any(|entry| entry.starts_with("HOME="))
        );
        assert!(spec.root().as_ref().unwrap().path().is_absolute());
    }
}
