//! What this machine offers a run: for people who ask why it is slow, on the CPU, or without a network.

use crate::device::{self, Compute, DeviceError, DeviceKind};
use crate::env::HubEnv;
use crate::error::Diagnose;
use candle_core::{DType, Device};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What this machine offers.
#[derive(Debug, Serialize)]
pub struct Doctor {
    /// The version of this program.
    pub version: &'static str,
    /// Where `device = "auto"` computes: `cpu` or `cuda`.
    pub device: &'static str,
    /// Threads of the kernels on the CPU.
    pub threads: usize,
    /// The vector instructions that they use.
    pub instructions: &'static str,
    /// Bytes of main memory that a run can have.
    pub memory_bytes: Option<usize>,
    pub gpu: Gpu,
    pub hub: Hub,
    /// Free bytes of the disks that matter.
    pub disks: Vec<Disk>,
}

/// The GPU that a run would use.
#[derive(Debug, Serialize)]
pub struct Gpu {
    /// Whether this program is built with kernels for it.
    pub built: bool,
    /// Bytes of its memory that are free, where it can be used.
    pub memory_bytes: Option<usize>,
    /// Why it cannot be used, and what to do.
    pub problem: Option<String>,
}

/// How models are found.
#[derive(Debug, Serialize)]
pub struct Hub {
    /// The folder of downloaded models.
    pub cache: PathBuf,
    /// The address of the Hub or of a mirror.
    pub endpoint: String,
    /// Whether only the cache and local folders are used.
    pub offline: bool,
    /// Whether there is an access token; it is never shown.
    pub token: bool,
}

/// The disk of a folder.
#[derive(Debug, Serialize)]
pub struct Disk {
    /// The folder, or the nearest one above it that exists.
    pub folder: PathBuf,
    /// Bytes that may still be written; `None` where the system does not say.
    pub free_bytes: Option<u64>,
}

impl Doctor {
    /// Looks at the machine; opens the GPU where there is one.
    #[must_use]
    pub fn look() -> Self {
        let gpu = device::open(DeviceKind::Cuda);
        let compute = |device: &Device| Compute { device: device.clone(), dtype: DType::F32 };
        let hub = HubEnv::read();
        let folders = [PathBuf::from("."), hub.cache.clone()];
        Self {
            version: env!("CARGO_PKG_VERSION"),
            device: if gpu.is_ok() { "cuda" } else { "cpu" },
            threads: rayon::current_num_threads(),
            instructions: crate::ops::instructions(),
            memory_bytes: Compute::cpu().available_memory(),
            gpu: Gpu {
                built: cfg!(feature = "cuda"),
                memory_bytes: gpu.as_ref().ok().and_then(|device| compute(device).available_memory()),
                problem: gpu.err().as_ref().map(problem),
            },
            hub: Hub { cache: hub.cache, endpoint: hub.endpoint, offline: hub.offline, token: hub.token.is_some() },
            disks: folders.iter().map(|folder| disk(folder)).collect(),
        }
    }
}

fn problem(error: &DeviceError) -> String {
    if *error == DeviceError::NoCuda {
        return "this build has no CUDA kernels; `cargo build --release --features cuda` makes one that has".into();
    }
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}. {hint}"))
}

fn disk(folder: &Path) -> Disk {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let free = rustix::fs::statvfs(existing).ok().map(|disk| disk.f_bavail * disk.f_frsize);
    Disk { folder: std::path::absolute(existing).unwrap_or_else(|_| existing.to_owned()), free_bytes: free }
}
