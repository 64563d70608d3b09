//! Which device tensors live on, and how many threads the kernels use.

use crate::error::{Diagnose, Exit};
use candle_core::{DType, Device};
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

/// A device, and the format in which a model computes on it.
#[derive(Debug, Clone)]
pub struct Compute {
    pub device: Device,
    pub dtype: DType,
}

impl Compute {
    /// f32 on the CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }

    /// The kind of the device: `cpu` or `cuda`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.device.is_cpu() { "cpu" } else { "cuda" }
    }

    /// Bytes of memory that can still be had where tensors live, as far as the system tells.
    #[must_use]
    pub fn available_memory(&self) -> Option<usize> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.device {
            return cuda::available_memory(device);
        }
        available_memory()
    }
}

/// Why a device or its threads could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    #[error("device = \"cuda\" was asked for, and this build has no CUDA kernels")]
    NoCuda,
    #[error("no GPU can be used: {reason}")]
    NoGpu { reason: String },
    #[error("the GPU {name} has compute capability {major}.{minor}; 8.0 or later is needed")]
    OldGpu { name: String, major: i32, minor: i32 },
    #[error("the GPU's driver cannot load this program's kernels: {reason}")]
    Kernels { reason: String },
    #[error("{threads} threads could not be started: {reason}")]
    Threads { threads: usize, reason: String },
}

impl Diagnose for DeviceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoCuda => {
                "Leave `device` at \"auto\" or set it to \"cpu\", or build with `cargo build --release --features cuda`."
                    .into()
            }
            Self::NoGpu { reason } if reason.contains("STUB_LIBRARY") => {
                "The library of the toolkit was loaded in the place of the driver's: take `lib64/stubs` out of \
                 LD_LIBRARY_PATH."
                    .into()
            }
            Self::NoGpu { reason } if reason.contains("INSUFFICIENT_DRIVER") || reason.contains("DRIVER_MISMATCH") => {
                "Install driver 580 or later, or set `device` to \"cpu\".".into()
            }
            Self::NoGpu { .. } => {
                "Check that `nvidia-smi` lists a GPU and that CUDA_VISIBLE_DEVICES does not hide it, or set `device` to \
                 \"cpu\"."
                    .into()
            }
            Self::OldGpu { .. } => "Use a GPU of the Ampere generation or later, or set `device` to \"cpu\".".into(),
            Self::Kernels { .. } => {
                "Install driver 580 or later, or build for this GPU with CUDA_COMPUTE_CAP set to its compute \
                 capability (89 for 8.9)."
                    .into()
            }
            Self::Threads { .. } => "Set `threads` to the number of cores, or leave it out.".into(),
        })
    }

    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// Opens the device. With [`DeviceKind::Auto`] it is the CPU where no GPU can be used.
///
/// # Errors
/// Says why, where a GPU was demanded and cannot be used.
pub fn open(kind: DeviceKind) -> Result<Device, DeviceError> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => open_gpu(),
        DeviceKind::Auto => Ok(open_gpu().unwrap_or_else(|error| {
            if error != DeviceError::NoCuda {
                tracing::warn!("running on the CPU: {error}");
            }
            Device::Cpu
        })),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NoCuda)
}

#[cfg(feature = "cuda")]
use cuda::open_gpu;

/// What to do about a failed tensor operation, where the device is to blame; `memory` says what takes less of it.
#[must_use]
pub fn hint(error: &candle_core::Error, memory: &str) -> Option<String> {
    let text = error.to_string();
    if text.contains("OUT_OF_MEMORY") || text.contains("out of memory") || text.contains("ALLOC_FAILED") {
        return Some(format!("The GPU's memory is full. {memory}"));
    }
    // All that the driver reports of a device which has failed or is gone.
    text.contains("CUDA_ERROR").then(|| {
        "The GPU has failed; nothing that was saved is touched. `nvidia-smi` and `dmesg` tell more; go on from the last \
         checkpoint with `--resume auto`."
            .to_owned()
    })
}

/// The most bytes that tensors have taken on a GPU so far.
#[must_use]
pub fn peak_gpu_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::peak_memory(device);
    }
    let _ = device;
    None
}

/// Whether f32 products on a GPU may round their operands to TF32 (10 bits of mantissa, several times faster).
pub fn allow_tf32(allowed: bool) {
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(allowed);
    let _ = allowed;
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::DeviceError;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
    use candle_core::{CudaDevice, Device};

    /// Opens the first GPU that CUDA shows.
    pub(super) fn open_gpu() -> Result<Device, DeviceError> {
        let no_gpu = |error: &dyn std::fmt::Display| DeviceError::NoGpu { reason: first_line(error) };
        let device = Device::new_cuda_with_stream(0).map_err(|error| no_gpu(&error))?;
        let Device::Cuda(gpu) = &device else { return Err(no_gpu(&"candle opened another device")) };
        let context = gpu.cuda_stream().context().clone();
        let (major, minor) = context.compute_capability().map_err(|error| no_gpu(&error))?;
        if major < 8 {
            return Err(DeviceError::OldGpu { name: context.name().unwrap_or_default(), major, minor });
        }
        // SAFETY: all work of this program is queued on one stream.
        unsafe { gpu.disable_event_tracking() };
        keep_freed_memory(&context).map_err(|error| no_gpu(&error))?;
        crate::ops::check_kernels(&device).map_err(|error| DeviceError::Kernels { reason: first_line(&error) })?;
        Ok(device)
    }

    /// The error without the backtrace that candle may add.
    fn first_line(error: &dyn std::fmt::Display) -> String {
        error.to_string().lines().next().unwrap_or_default().to_owned()
    }

    /// Freed memory stays with the program: handing it back to the driver and asking again costs more than a kernel.
    fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
        let mut all = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is open, and the attribute is a number of 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device())?;
            sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()).result()
        }
    }

    /// What the pools of tensors and of recorded work have held at most.
    pub(super) fn peak_memory(device: &CudaDevice) -> Option<u64> {
        let (mut bytes, mut recorded) = (0u64, 0u64);
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        let of_graphs = sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
        let device = device.cuda_stream().context().cu_device();
        // SAFETY: the device is open, and the attributes are numbers of 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(device).ok()?;
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().ok()?;
            sys::cuDeviceGetGraphMemAttribute(device, of_graphs, (&raw mut recorded).cast()).result().ok()?;
        }
        Some(bytes + recorded)
    }

    pub(super) fn available_memory(device: &CudaDevice) -> Option<usize> {
        device.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free)
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
    let in_group = limit.map(|limit| {
        // Cached files that nobody has touched for a while give way.
        let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
        let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0).saturating_sub(cached);
        limit.saturating_sub(used)
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_driver_come_with_advice() {
        let hint = |text: &str| hint(&candle_core::Error::msg(text), "Halve it.");
        let full = hint("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").unwrap();
        assert!(full.ends_with("Halve it."), "{full}");
        assert!(hint("adamw: DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"...\")").unwrap().contains("--resume"));
        assert_eq!(hint("shape mismatch"), None);
    }
}
