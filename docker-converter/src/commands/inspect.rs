//! `trustme-convert inspect`

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use trustme_guestos::bundle::Bundle;
use trustme_guestos::config::GuestOsConfig;
use trustme_guestos::image_config::ImageConfig;

/// Shows what a bundle says. Checks the image configuration against the text, but not the signature: that is `verify`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text.
    conf: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the configuration text and the image configuration.
pub fn run(arguments: &Arguments) -> Result<()> {
    let bundle = Bundle::open(&arguments.conf)?;
    let image = match bundle.has_image_config() {
        true => Some(bundle.image_config()?),
        false => None,
    };
    if arguments.json {
        println!("{:#}", json!({"guestos": bundle.conf(), "image": image}));
        return Ok(());
    }
    print_guestos(bundle.conf());
    if let Some(image) = image {
        print_image(&image);
    }
    Ok(())
}

fn print_guestos(conf: &GuestOsConfig) {
    line("name", &conf.name);
    line("version", conf.version);
    line("hardware", &conf.hardware);
    line("description", &conf.description.en);
    line("init", conf.init_path());
    for parameter in &conf.init_param {
        line("  argument", format!("{parameter:?}"));
    }
    for variable in &conf.init_env {
        line("environment", variable);
    }
    for mount in &conf.mounts {
        line(
            "mount",
            format!(
                "{} on {} ({}, {})",
                mount.image_file, mount.mount_point, mount.fs_type, mount.mount_type
            ),
        );
        if let Some(size) = mount.image_size {
            line("  size", size);
        }
        if let Some(digest) = &mount.image_sha2_256 {
            line("  sha256", digest);
        }
        if let Some(digest) = &mount.image_verity_sha256 {
            line("  verity root", digest);
        }
    }
}

fn print_image(image: &ImageConfig) {
    line("platform", format!("{}/{}", image.os, image.architecture));
    line(
        "user",
        format!(
            "{:?}: uid {}, gid {}, groups {:?}",
            image.user, image.uid, image.gid, image.additional_gids
        ),
    );
    line("directory", &image.cwd);
    if let Some(signal) = &image.stop_signal {
        line("stop signal", signal);
    }
    for port in &image.exposed_ports {
        line("port", port);
    }
    for (key, value) in &image.labels {
        line("label", format!("{key}={value:?}"));
    }
}

fn line(what: &str, value: impl std::fmt::Display) {
    println!("{what:<13} {value}");
}
