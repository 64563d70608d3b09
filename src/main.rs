//! The `candlewick` program: arguments in, exit code out. What it does is in `cli` and the library.

mod cli;

use std::process::ExitCode;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h; the bindings do not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // Training frees and takes the same large blocks all the time. Giving them back to the system in between costs a
    // third of a small model's step in page faults.
    // SAFETY: the option exists in the versions that the bindings build, and is read when memory is freed.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    match cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
