//! What a long conversion shows: bars on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows what is being done.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// On standard error.
    #[must_use]
    pub fn new() -> Self {
        Self { shown: true }
    }

    /// Nowhere.
    #[must_use]
    pub fn hidden() -> Self {
        Self { shown: false }
    }

    /// A step that takes `bytes`. The bar goes when it is dropped or finished.
    ///
    /// # Panics
    /// Never: the template is a constant.
    #[must_use]
    pub fn step(self, what: String, bytes: u64) -> ProgressBar {
        if !self.shown {
            return ProgressBar::hidden();
        }
        if !io::stderr().is_terminal() {
            eprintln!("{what}");
            return ProgressBar::hidden();
        }
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {eta}";
        let style = ProgressStyle::with_template(template).expect("a template that is known");
        ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr())
            .with_style(style)
            .with_message(what)
    }

    /// Something that people should know.
    pub fn warn(self, what: &str) {
        if self.shown {
            eprintln!("warning: {what}");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
