//! From configuration to text.

use super::{GuestOsConfig, I18nString, Mount};

/// The whole text. Whether the dialect can say it is for the parser to judge.
pub(super) fn configuration(config: &GuestOsConfig) -> String {
    let mut lines = Lines::default();
    lines.string("name", &config.name);
    lines.string("hardware", &config.hardware);
    lines.bare("version", config.version);
    for mount in &config.mounts {
        lines.message("mounts", |lines| lines.mount(mount));
    }
    lines.optional_string("init_path", &config.init_path);
    for parameter in &config.init_param {
        lines.string("init_param", parameter);
    }
    for variable in &config.init_env {
        lines.string("init_env", variable);
    }
    for mount in &config.mounts_setup {
        lines.message("mounts_setup", |lines| lines.mount(mount));
    }
    lines.message("description", |lines| {
        lines.i18n_string(&config.description);
    });
    if let Some(description) = &config.description_long {
        lines.message("description_long", |lines| lines.i18n_string(description));
    }
    lines.optional_string("upstream_version", &config.upstream_version);
    lines.optional_string("icon", &config.icon);
    lines.optional_string("build_date", &config.build_date);
    lines.optional_string("update_base_url", &config.update_base_url);
    lines.optional("feature_bg_booting", config.feature_bg_booting);
    lines.optional("min_ram_limit", config.min_ram_limit);
    lines.optional("def_ram_limit", config.def_ram_limit);
    lines.optional("feature_install_guest", config.feature_install_guest);
    lines.text
}

#[derive(Default)]
struct Lines {
    text: String,
    indent: &'static str,
}

impl Lines {
    fn bare(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        self.text.extend([self.indent, name, ": ", &value, "\n"]);
    }

    fn string(&mut self, name: &str, value: &str) {
        self.bare(name, quoted(value));
    }

    fn optional(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.bare(name, value);
        }
    }

    fn optional_string(&mut self, name: &str, value: &Option<String>) {
        self.optional(name, value.as_deref().map(quoted));
    }

    /// Messages hold no messages but at the top.
    fn message(&mut self, name: &str, fields: impl FnOnce(&mut Self)) {
        self.text.extend([name, " {\n"]);
        self.indent = "  ";
        fields(self);
        self.indent = "";
        self.text.push_str("}\n");
    }

    fn mount(&mut self, mount: &Mount) {
        self.string("image_file", &mount.image_file);
        self.string("mount_point", &mount.mount_point);
        self.string("fs_type", &mount.fs_type);
        self.bare("mount_type", mount.mount_type);
        self.optional("min_size", mount.min_size);
        self.optional("max_size", mount.max_size);
        self.optional("def_size", mount.def_size);
        self.optional("image_size", mount.image_size);
        self.optional_string("image_sha1", &mount.image_sha1);
        self.optional_string("image_sha2_256", &mount.image_sha2_256);
        self.optional_string("mount_data", &mount.mount_data);
        self.optional_string("image_verity_sha256", &mount.image_verity_sha256);
    }

    fn i18n_string(&mut self, string: &I18nString) {
        self.string("en", &string.en);
        self.optional_string("de", &string.de);
        self.optional_string("fr", &string.fr);
    }
}

/// A string in quotes.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            char if char < ' ' => quoted.push_str(&format!("\\{:03o}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}
