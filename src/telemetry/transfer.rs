//! How far a transfer of bytes is: a bar on a terminal, a line for each file elsewhere. On stderr.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use super::console::bars;
use crate::env;

/// Shows the progress of a transfer.
#[derive(Debug)]
pub struct Transfer {
    /// `None` where stderr is no terminal.
    bar: Option<ProgressBar>,
    /// The file that was named last.
    file: String,
}

impl Transfer {
    /// Of `bytes` bytes in all.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let is_terminal = io::stderr().is_terminal() && env::can_redraw();
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = is_terminal.then(|| bars().add(ProgressBar::new(bytes)));
        if let Some((bar, style)) = bar.as_ref().zip(ProgressStyle::with_template(template).ok()) {
            bar.set_style(style);
        }
        Self { bar, file: String::new() }
    }

    /// `bytes` of all bytes are through; the next ones are those of `file`.
    pub fn at(&mut self, file: &str, bytes: u64) {
        let is_new = self.file != file;
        if is_new {
            file.clone_into(&mut self.file);
        }
        match &self.bar {
            Some(bar) => {
                if is_new {
                    bar.set_message(file.to_owned());
                }
                bar.set_position(bytes);
            }
            None if is_new => tracing::info!("sending {file}"),
            None => {}
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
