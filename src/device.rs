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

/// Sizes the thread pool that all kernels share; `None` leaves it at one thread a core.
///
/// # Errors
/// Fails where the threads cannot be started.
pub fn set_threads(threads: Option<usize>) -> Result<(), DeviceError> {
    let Some(threads) = threads else { return Ok(()) };
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        // A pool that runs already is fine if it has the right size.
        Err(_) if rayon::current_num_threads() == threads => Ok(()),
        other => other.map_err(|error| DeviceError::Threads { threads, reason: error.to_string() }),
    }
}
