//! What every error of the project can tell a person: a message, the next action, an exit code.
//!
//! Each area has its own `thiserror` enum whose variants hold the facts (path, line, key, expected, got). This
//! module owns only what they have in common, so that the binary can print any of them the same way.

use std::error::Error;

/// Exit codes of the binary. They are part of the command line's contract: scripts test them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The run failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A data file is wrong.
    Data = 3,
    /// A model file is wrong or unsupported.
    Model = 4,
    /// Reading or writing failed.
    Io = 5,
    /// A loss, gradient or weight is not finite.
    NonFinite = 6,
    /// Another run holds the output directory.
    Locked = 7,
    /// A remote service (the Hub) failed.
    Remote = 8,
    /// SIGINT, after a checkpoint was saved.
    Interrupted = 130,
    /// SIGTERM, after a checkpoint was saved.
    Terminated = 143,
}

/// An error that knows what the user should do next.
///
/// `Display` says what went wrong and where, in one sentence; [`Diagnose::hint`] says what to do.
pub trait Diagnose: Error + Send + Sync + 'static {
    /// The next action, as one imperative sentence, where there is one.
    fn hint(&self) -> Option<String> {
        None
    }

    /// The exit code of a command that ends with this error.
    fn exit(&self) -> Exit;
}
