//! Attacks by a container on the runtime that enters it, carried out for real.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use support::{Bundle, text};

/// A copy of the program that an attack may destroy.
struct Victim {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Victim {
    fn new(bundle: &Bundle) -> Self {
        let path = bundle.file("trustme");
        std::fs::copy(env!("CARGO_BIN_EXE_trustme"), &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        Self { path, bytes }
    }

    fn command(&self, bundle: &Bundle, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .arg("--root")
            .arg(bundle.root())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn assert_unchanged(&self) {
        assert!(
            std::fs::read(&self.path).unwrap() == self.bytes,
            "the runtime's binary was overwritten"
        );
    }
}

/// Gives the container's root all that a privileged container has, as far as this machine has it.
fn privilege(config: &mut serde_json::Value) {
    let all = [
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_CHOWN",
    ];
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(all);
    }
    config["process"]["noNewPrivileges"] = false.into();
}

/// CVE-2019-5736, first way: a process in the container waits for a runtime process to join its pid namespace, and
/// opens the file that it executes.
#[test]
fn a_container_cannot_write_the_binary_of_an_exec() {
    let mut bundle = Bundle::new(&["/attack"]);
    privilege(&mut bundle.config);
    let attack = "#!/bin/sh
    while :; do for process in /proc/[0-9]*; do
        exe=$(readlink $process/exe) || continue
        case $exe in */busybox) continue;; esac
        echo seen >> /seen
        if echo pwned 2>/dev/null > $process/exe; then echo yes >> /written; fi
        if mount -o remount,rw $process/exe 2>/dev/null; then echo yes >> /written; fi
    done; done";
    std::fs::write(bundle.rootfs().join("attack"), attack).unwrap();
    Command::new("chmod")
        .arg("+x")
        .arg(bundle.rootfs().join("attack"))
        .status()
        .unwrap();
    let victim = Victim::new(&bundle);
    bundle.write();
    let bundle_dir = bundle.path();
    let run = victim.command(
        &bundle,
        &[
            "run",
            "--detach",
            "--bundle",
            bundle_dir.to_str().unwrap(),
            &bundle.id,
        ],
    );
    assert!(
        support::output(run, &bundle.file("output"))
            .status
            .success()
    );
    for _ in 0..40 {
        let output = victim
            .command(&bundle, &["exec", &bundle.id, "true"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let seen = std::fs::read_to_string(bundle.rootfs().join("seen")).unwrap_or_default();
    assert!(
        !seen.is_empty(),
        "the attack never saw the runtime: the test proves nothing"
    );
    assert!(!bundle.rootfs().join("written").exists());
    victim.assert_unchanged();
}

/// CVE-2019-5736, second way: the container's program is /proc/self/exe, so the runtime executes itself inside of the
/// container, with the container's loader, which keeps the file open and writes it once nobody executes it. A static
/// runtime has no loader: then nothing of the container may run.
#[test]
fn a_container_cannot_make_the_runtime_execute_itself_and_write_it() {
    let mut bundle = Bundle::new(&["/proc/self/exe"]);
    privilege(&mut bundle.config);
    let rootfs = bundle.rootfs();
    std::fs::create_dir_all(rootfs.join("lib64")).unwrap();
    std::fs::create_dir_all(rootfs.join("lib")).unwrap();
    let source = bundle.file("loader.c");
    // Without the C library: its start-up code would take the runtime's program headers for its own.
    let program = r#"
        static long call(long number, long a, long b, long c) {
        #if defined(__x86_64__)
            long result;
            __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
            return result;
        #define OPEN 2
        #define FCNTL 72
        #define EXECVE 59
        #else
        #error "add the system calls of this architecture"
        #endif
        }
        void _start(void) {
            static const char *args[] = {"sh", "-c",
                "echo seen > /seen; n=0; while [ $n -lt 300 ]; do n=$((n+1));"
                "if echo pwned 2>/dev/null > /proc/self/fd/9; then echo yes > /written; exit; fi; done", 0};
            static const char *env[] = {"PATH=/bin", 0};
            long file = call(OPEN, (long)"/proc/self/exe", 010000000 /* O_PATH */, 0);
            call(FCNTL, file, 0 /* F_DUPFD */, 9);
            call(EXECVE, (long)"/bin/sh", (long)args, (long)env);
            for (;;);
        }"#;
    std::fs::write(&source, program).unwrap();
    let loader = interpreter_of(Path::new(env!("CARGO_BIN_EXE_trustme")));
    let usual = Path::new("/lib64/ld-linux-x86-64.so.2");
    let target = loader.as_deref().unwrap_or(usual);
    let target = rootfs.join(target.strip_prefix("/").unwrap());
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    let compiled = Command::new("cc")
        .args([
            "-static",
            "-nostdlib",
            "-ffreestanding",
            "-fno-stack-protector",
            "-o",
        ])
        .arg(&target)
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let victim = Victim::new(&bundle);
    bundle.write();
    let bundle_dir = bundle.path();
    let mut run = victim.command(
        &bundle,
        &["run", "--bundle", bundle_dir.to_str().unwrap(), &bundle.id],
    );
    let output = run.output().unwrap();
    assert_eq!(
        rootfs.join("seen").exists(),
        loader.is_some(),
        "{}",
        text(&output.stderr)
    );
    assert!(!rootfs.join("written").exists());
    victim.assert_unchanged();
}

/// The loader that the kernel starts for a program (ELF's PT_INTERP); a static one has none.
fn interpreter_of(program: &Path) -> Option<PathBuf> {
    let headers = Command::new("readelf")
        .args(["--wide", "--program-headers"])
        .arg(program)
        .output()
        .unwrap();
    assert!(headers.status.success());
    let headers = text(&headers.stdout);
    let (_, rest) = headers.split_once("program interpreter: ")?;
    rest.split_once(']').map(|(path, _)| PathBuf::from(path))
}

/// The marker of the second exec in the environment proves nothing to the runtime: it still protects its binary, or
/// refuses to go on.
#[test]
fn the_protection_cannot_be_talked_away() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    let mut command = bundle.command("run --bundle BUNDLE ID");
    let output = command.env("_TRUSTME_SEALED", "1").output().unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("still writable"),
        "{}",
        text(&output.stderr)
    );
    bundle.assert_gone();
}

/// A container with cgroups mounted read-only cannot change its own limits.
#[test]
fn a_container_cannot_change_its_cgroups() {
    let script = "for file in $(find /sys/fs/cgroup -name devices.allow -o -name cgroup.procs); do \
        if echo a 2>/dev/null > $file; then echo written $file; fi; done; ls /sys/fs/cgroup | head -n 1";
    let bundle = Bundle::new(&["sh", "-c", script]);
    let printed = bundle.ok("run --bundle BUNDLE ID");
    assert!(
        !printed.is_empty() && !printed.contains("written"),
        "{printed}"
    );
}

/// CVE-2024-21626: no descriptor of the runtime leads out of the container, neither as the working directory nor open.
#[test]
fn no_descriptor_of_the_runtime_leaks() {
    let mut bundle = Bundle::new(&["ls", "-l", "/proc/self/fd"]);
    let printed = bundle.ok("run --bundle BUNDLE ID");
    let targets: Vec<_> = printed
        .lines()
        .filter_map(|line| line.split(" -> ").nth(1))
        .collect();
    // Standard input, output and error; what ls itself had open for the list is gone when it looks.
    assert_eq!(targets.len(), 3, "{printed}");
    for fd in 3..12 {
        bundle.config["process"]["cwd"] = format!("/proc/self/fd/{fd}").into();
        bundle.config["process"]["args"] = json!(["sh", "-c", "ls ../../../../ > /out; pwd"]);
        let output = bundle.run("run --bundle BUNDLE ID");
        assert!(
            !output.status.success(),
            "cwd at descriptor {fd}: {}",
            text(&output.stdout)
        );
        bundle.assert_gone();
    }
}
