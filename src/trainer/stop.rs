//! Ctrl-C and SIGTERM: the first asks the run to finish its step and save, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::error::Exit;

/// What the run asks at the end of each step: must I stop?
#[derive(Debug, Clone, Default)]
pub struct StopSignal {
    /// The number of the first signal; 0 while there was none.
    signal: Arc<AtomicUsize>,
}

impl StopSignal {
    /// A signal that never comes unless [`StopSignal::request`] is called: for a program that handles signals itself.
    #[must_use]
    pub fn manual() -> Self {
        Self::default()
    }

    /// Takes over SIGINT and SIGTERM for the rest of the process.
    ///
    /// # Errors
    /// What the operating system says where it does not allow that.
    pub fn install() -> std::io::Result<Self> {
        let stop = Self::default();
        let is_stopping = Arc::new(AtomicBool::new(false));
        for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            // In this order: the first signal finds the flag unset and sets it, the second finds it set.
            flag::register_conditional_shutdown(signal, exit as i32, Arc::clone(&is_stopping))?;
            flag::register(signal, Arc::clone(&is_stopping))?;
            flag::register_usize(signal, Arc::clone(&stop.signal), signal as usize)?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        // A step may take minutes: whoever asked is told that it was heard.
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                tracing::warn!(
                    "stopping after this step, with its state saved; the same again ends it at once, unsaved"
                );
            }
        });
        Ok(stop)
    }

    /// Asks the run to stop as SIGTERM does.
    pub fn request(&self) {
        self.signal.store(SIGTERM as usize, Ordering::SeqCst);
    }

    /// The exit code to end with once the checkpoint is saved; `None` while the run should go on.
    #[must_use]
    pub fn requested(&self) -> Option<Exit> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            signal if signal == SIGINT as usize => Some(Exit::Interrupted),
            _ => Some(Exit::Terminated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_seen_and_does_not_end_the_process() {
        let manual = StopSignal::manual();
        assert_eq!(manual.requested(), None);
        manual.request();
        assert_eq!(manual.requested(), Some(Exit::Terminated));

        let stop = StopSignal::install().unwrap();
        assert_eq!(stop.requested(), None);
        signal_hook::low_level::raise(SIGINT).unwrap();
        assert_eq!(stop.requested(), Some(Exit::Interrupted));
    }
}
