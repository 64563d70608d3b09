//! How a command ends that could not do its work: the text on stderr and the exit code.

use candlewick::env::wants_color;
use candlewick::error::{Diagnose, Exit};
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Why a verb failed.
pub enum Failure {
    /// The library said so.
    Error(Box<dyn Diagnose>),
    /// Standard output could not be written.
    Output(io::Error),
}

impl<E: Diagnose> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(Box::new(error))
    }
}

impl Failure {
    /// Prints the error with its causes and the hint, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // Errors of stderr have nowhere to go.
        match self {
            // The reader has seen enough (`| head`): nothing went wrong.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Output(error) => {
                let _ = write(&format!("cannot write to standard output: {error}"), None);
                ExitCode::from(Exit::Io as u8)
            }
            Self::Error(error) => {
                let mut text = error.to_string();
                let mut cause: Option<&(dyn Error + 'static)> = error.source();
                while let Some(error) = cause {
                    let message = error.to_string();
                    if !text.contains(&message) {
                        text.push_str("\n  caused by: ");
                        text.push_str(&message);
                    }
                    cause = error.source();
                }
                let _ = write(&text, error.hint().as_deref());
                ExitCode::from(error.exit() as u8)
            }
        }
    }
}

fn write(text: &str, hint: Option<&str>) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    let has_color = wants_color(stderr.is_terminal());
    let (red, cyan, plain) = if has_color { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    writeln!(stderr, "{red}error{plain}: {text}")?;
    if let Some(hint) = hint {
        writeln!(stderr, "\n{cyan}hint{plain}: {hint}")?;
    }
    Ok(())
}
