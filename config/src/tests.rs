//! Good files, and the message for each kind of bad one.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/trustme/config.toml")).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_has_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.launch.mode, LaunchMode::Off);
    assert_eq!(config.tpm.tcti, "device:/dev/tpmrm0");
    assert_eq!((config.tpm.image_pcr, config.tpm.config_pcr), (11, 13));
    assert_eq!(config.volumes.pcrs, [7]);
    assert_eq!(config.source.as_deref(), Some(Path::new(DEFAULT_PATH)));
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [launch]
        mode = "enforce"
        anchors = "/a"
        floors = "/f"
        manifests = "/m"
        policies = "/p"
        [tpm]
        tcti = "swtpm:path=/run/tpm"
        image_pcr = 12
        config_pcr = 14
        [log]
        path = "/l"
        [volumes]
        dir = "/v"
        backend = "fscrypt"
        pcrs = [0, 7]
        "#,
    )
    .unwrap();
    let expected = Config {
        launch: Launch {
            mode: LaunchMode::Enforce,
            anchors: "/a".into(),
            floors: "/f".into(),
            manifests: "/m".into(),
            policies: "/p".into(),
        },
        tpm: Tpm {
            tcti: "swtpm:path=/run/tpm".into(),
            image_pcr: 12,
            config_pcr: 14,
        },
        log: Log { path: "/l".into() },
        volumes: Volumes {
            dir: "/v".into(),
            backend: VolumeBackend::Fscrypt,
            pcrs: vec![0, 7],
        },
        source: Some(DEFAULT_PATH.into()),
    };
    assert_eq!(config, expected);
}

#[test]
fn the_packaged_file_is_valid_and_measures() {
    let config = parse(include_str!("../../packaging/config.toml")).unwrap();
    let mut expected = Config {
        source: Some(DEFAULT_PATH.into()),
        ..Config::default()
    };
    expected.launch.mode = LaunchMode::Measure;
    assert_eq!(config, expected);
}

#[test]
fn an_error_names_file_line_and_key() {
    let file = "/etc/trustme/config.toml";
    let cases = [
        (
            "[launch]\nmode = \"on\"\n",
            "2: launch.mode: unknown variant `on`, expected one of `off`, `measure`, `enforce`",
        ),
        (
            "[launch]\n\nmodus = \"off\"\n",
            "3: launch.modus: unknown field `modus`, expected one of `mode`, `anchors`, `floors`, `manifests`, `policies`",
        ),
        (
            "[lunch]\n",
            "1: lunch: unknown field `lunch`, expected one of `launch`, `tpm`, `log`, `volumes`",
        ),
        (
            "[tpm]\nimage_pcr = \"11\"\n",
            "2: tpm.image_pcr: invalid type: string \"11\", expected u8",
        ),
        (
            "[tpm]\nimage_pcr = 300\n",
            "2: tpm.image_pcr: invalid value: integer `300`, expected u8",
        ),
        (
            "[tpm]\nimage_pcr = 23\n",
            "2: tpm.image_pcr: 23 is not a PCR from 0 to 22",
        ),
        (
            "[tpm]\nconfig_pcr = 11\n",
            "2: tpm.config_pcr: the same PCR as tpm.image_pcr",
        ),
        (
            "[tpm]\ntcti = \"\"\n",
            "2: tpm.tcti: empty; a TCTI string or \"none\" expected",
        ),
        (
            "[volumes]\ndir = \"v\"\n",
            "2: volumes.dir: \"v\" is not an absolute path",
        ),
        (
            "[volumes]\npcrs = [\n  7,\n  \"x\",\n]\n",
            "4: volumes.pcrs: invalid type: string \"x\", expected u8",
        ),
        (
            "[volumes]\npcrs = [7, 24]\n",
            "2: volumes.pcrs: 24 is not a PCR from 0 to 22",
        ),
        (
            "[volumes]\npcrs = [13]\n",
            "2: volumes.pcrs: 13 is tpm.config_pcr, which changes with every launch",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(
            parse(text).unwrap_err(),
            format!("{file}:{message}"),
            "{text:?}"
        );
    }
    let syntax = parse("[launch]\nmode = \n").unwrap_err();
    assert!(syntax.starts_with(&format!("{file}:2: ")), "{syntax}");
    let twice = parse("[launch]\nmode = \"off\"\nmode = \"off\"\n").unwrap_err();
    assert!(twice.starts_with(&format!("{file}:3: ")), "{twice}");
}

#[test]
fn an_unreadable_file_is_an_error() {
    for (path, reason) in [
        (
            "/nonexistent/config.toml",
            "No such file or directory (os error 2)",
        ),
        ("/dev/zero", "larger than 1 MiB"),
    ] {
        let error = Config::read(Path::new(path)).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {path}"));
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), reason);
    }
}
