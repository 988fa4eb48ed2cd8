//! trustmectl as an operator calls it, without a TPM. With one it is tested by the demonstration and in trust/.

use std::fs;
use std::process::{Command, Output};

struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let dir = machine.0.path().display().to_string();
        let text = format!(
            "[launch]\nmode = \"measure\"\nfloors = \"{dir}/floors\"\n[tpm]\ntcti = \"none\"\n\
             [log]\npath = \"{dir}/measure.log\"\n[volumes]\ndir = \"{dir}/volumes\"\n"
        );
        fs::write(machine.0.path().join("config.toml"), text).unwrap();
        machine
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trustmectl"))
            .args(arguments)
            .env("TRUSTME_CONFIG", self.0.path().join("config.toml"))
            .output()
            .unwrap()
    }

    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.prints(arguments)).unwrap()
    }
}

#[test]
fn floors_are_set_and_printed() {
    let machine = Machine::new();
    assert_eq!(
        machine.prints(&["floor", "nginx"]),
        "nginx: every version may start\n"
    );
    assert_eq!(
        machine.prints(&["floor", "nginx", "7"]),
        "nginx: versions from 7 on may start\n"
    );
    assert_eq!(
        machine.prints(&["floor", "nginx"]),
        "nginx: versions from 7 on may start\n"
    );
    let error = machine.fails(&["floor", "../x", "7"]);
    assert!(
        error.starts_with("error: \"../x\" is not a GuestOS name"),
        "{error}"
    );
}

#[test]
fn a_machine_without_log_and_volumes_is_told() {
    let machine = Machine::new();
    let missing = format!(
        "error: measurement log {}: No such file or directory (os error 2)\n",
        machine.0.path().join("measure.log").display()
    );
    assert_eq!(machine.fails(&["log", "show"]), missing);
    assert_eq!(machine.fails(&["log", "verify"]), missing);
    assert_eq!(machine.prints(&["volume", "list"]), "");
    assert_eq!(
        machine.json(&["volume", "list", "--json"]),
        serde_json::json!([])
    );
    let status = machine.json(&["status", "--json"]);
    assert_eq!(
        (&status["mode"], &status["tcti"]),
        (&"measure".into(), &"none".into())
    );
    assert!(
        machine
            .prints(&["status"])
            .contains("launch mode    measure")
    );
}

#[test]
fn a_log_is_shown_and_verified() {
    let machine = Machine::new();
    let path = machine.0.path().join("measure.log");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let sample = include_str!("../../trust/tests/measure.log");
    let log = sample.replace("ef204f46-1074-461f-bf3a-2f6740262c38", boot_id.trim());
    fs::write(&path, &log).unwrap();
    let shown = machine.prints(&["log", "show"]);
    assert_eq!(shown.lines().count(), 3);
    assert!(
        shown.starts_with("0: start of boot ")
            && shown.contains("\n2: PCR 13 configuration 0097d27c"),
        "{shown}"
    );
    assert_eq!(machine.json(&["log", "show", "--json"])[1]["recnum"], 1);
    assert_eq!(
        machine.json(&["log", "verify", "--json"])["state"],
        "unanchored"
    );

    fs::write(&path, sample.replace("ef204f46", "00000000")).unwrap();
    assert!(
        machine
            .fails(&["log", "verify"])
            .contains("of another boot of the machine")
    );
    fs::write(&path, log.replace("\"recnum\":2", "\"recnum\":3")).unwrap();
    assert!(
        machine
            .fails(&["log", "verify"])
            .contains("record 2: has the number 3")
    );
}
