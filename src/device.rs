//! Which device tensors live on, and how many threads the kernels use.

use crate::error::{Diagnose, Exit};
use candle_core::Device;
use serde::{Deserialize, Serialize};

/// Where tensors live and kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// CUDA where the program is built with it and a GPU answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// Why a device or its threads could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    #[error("device = \"cuda\" was asked for, and this build has no CUDA kernels")]
    NoCuda,
    #[error("{threads} threads could not be started: {reason}")]
    Threads { threads: usize, reason: String },
}

impl Diagnose for DeviceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoCuda => {
                "Leave `device` at \"auto\" or set it to \"cpu\"; training on a GPU is not built yet.".into()
            }
            Self::Threads { .. } => "Set `threads` to the number of cores, or leave it out.".into(),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// Opens the device.
///
/// # Errors
/// [`DeviceError::NoCuda`] where a GPU was demanded.
pub fn open(kind: DeviceKind) -> Result<Device, DeviceError> {
    match kind {
        DeviceKind::Auto | DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Err(DeviceError::NoCuda),
    }
}

/// Bytes of memory that this process can still get, as far as the system tells: what is free or can be freed, within
/// the limit of its control group.
#[must_use]
pub fn available_memory() -> Option<usize> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let limit = number("/sys/fs/cgroup/memory.max");
    let in_group = limit.map(|limit| limit.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some((kib << 10).min(in_group.unwrap_or(usize::MAX)))
}

/// Sizes the thread pool that all kernels share; `None` leaves it at one thread a core.
///
/// # Errors
/// Fails where the threads cannot be started, or run already in another number.
pub fn set_threads(threads: Option<usize>) -> Result<(), DeviceError> {
    match threads {
        None => Ok(()),
        Some(threads) => build_pool(Some(threads), rayon::ThreadPoolBuilder::new()),
    }
}

/// Like [`set_threads`], with the calling thread as one of the pool: it then works instead of waiting for the others.
/// For the main thread of a program, which lives as long as the pool.
///
/// # Errors
/// As [`set_threads`].
pub fn join_threads(threads: Option<usize>) -> Result<(), DeviceError> {
    build_pool(threads, rayon::ThreadPoolBuilder::new().use_current_thread())
}

/// More threads than any machine this is for has cores; starting a hundred thousand takes minutes.
const MAX_THREADS: usize = 1024;

fn build_pool(threads: Option<usize>, builder: rayon::ThreadPoolBuilder) -> Result<(), DeviceError> {
    let wanted = threads.unwrap_or(0);
    if wanted > MAX_THREADS {
        return Err(DeviceError::Threads { threads: wanted, reason: format!("more than {MAX_THREADS}") });
    }
    match builder.num_threads(wanted).build_global() {
        // A pool that runs already is fine if it has the right size.
        Err(_) if wanted == 0 || rayon::current_num_threads() == wanted => Ok(()),
        other => other.map_err(|error| DeviceError::Threads { threads: wanted, reason: error.to_string() }),
    }
}
