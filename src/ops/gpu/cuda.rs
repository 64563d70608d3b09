//! Launches and products on a CUDA device.

use super::matmul::Product;
use super::{Arg, Launch, Pointer};
use crate::ops::matmul::Form;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
pub(crate) use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, DevicePtr, PinnedHostSlice, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, DType, Result, Storage, bail};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

/// Every kernel, for the families of GPUs that the build was made for (`build.rs`).
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

pub(super) type Bytes = CudaSlice<u8>;

/// Kernels of a device that were looked up.
struct Loaded {
    module: Arc<CudaModule>,
    functions: HashMap<String, CudaFunction>,
}

/// By the number of the device.
static LOADED: OnceLock<Mutex<HashMap<usize, Loaded>>> = OnceLock::new();

pub(super) fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    let context = device.cuda_stream().context().clone();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let loaded = match loaded.entry(context.ordinal()) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).w()?;
            entry.insert(Loaded { module, functions: HashMap::new() })
        }
    };
    if let Some(function) = loaded.functions.get(name) {
        return Ok(function.clone());
    }
    let function = loaded.module.load_function(name).w()?;
    loaded.functions.insert(name.to_owned(), function.clone());
    Ok(function)
}

/// Dynamic shared memory that a block gets without asking: 48 KB, less what kernels declare themselves.
const SHARED_BY_DEFAULT: u32 = 40 << 10;

pub(super) fn launch(device: &CudaDevice, kernel: &str, launch: Launch, args: &[Arg<'_>]) -> Result<()> {
    let function = function(device, kernel)?;
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    if launch.shared > SHARED_BY_DEFAULT {
        let limit = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let limit = stream.context().attribute(limit).w()?;
        if i64::from(launch.shared) > i64::from(limit) {
            bail!(
                "{kernel} needs {} bytes of shared memory, and this GPU has {limit}: heads this wide need dtype = \"bf16\" \
                 or a GPU with more",
                launch.shared
            );
        }
        let size = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(size, launch.shared as i32).w()?;
    }
    let mut params: Vec<*mut c_void> = args.iter().map(|arg| arg.0.cast_mut()).collect();
    let [x, y, z] = launch.blocks;
    let (blocks, threads) = ((x, y, z), (launch.threads, 1, 1));
    // SAFETY: the callers hand each kernel the arguments that it declares, and the driver copies them.
    unsafe {
        result::launch_kernel(function.cu_function(), blocks, threads, launch.shared, stream.cu_stream(), &mut params)
    }
    .map_err(|error| candle_core::Error::msg(format!("{kernel}: {error}")).bt())
}

/// Where a storage begins, and its number of elements.
pub(super) fn storage(device: &CudaDevice, storage: &Storage) -> Result<(Pointer, usize)> {
    let Storage::Cuda(storage) = storage else { bail!("expected a tensor on the GPU") };
    let stream = device.cuda_stream();
    // One stream and no event tracking: the guard has nothing to wait for.
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => (Pointer(slice.device_ptr(&stream).0), slice.len()),
        CudaStorageSlice::BF16(slice) => (Pointer(slice.device_ptr(&stream).0), slice.len()),
        _ => bail!("expected a tensor of f32 or bf16"),
    })
}

pub(super) fn address(bytes: &Bytes) -> Pointer {
    Pointer(bytes.device_ptr(bytes.stream()).0)
}

pub(super) fn upload(device: &CudaDevice, bytes: &[u8]) -> Result<Bytes> {
    device.clone_htod(bytes)
}

pub(super) fn buffer(device: &CudaDevice, bytes: usize) -> Result<Bytes> {
    // SAFETY: kernels write before anything reads.
    unsafe { device.alloc::<u8>(bytes.max(1)) }
}

pub(super) fn download(device: &CudaDevice, buffer: &Bytes, bytes: &mut [u8]) -> Result<()> {
    let stream = device.cuda_stream();
    stream.memcpy_dtoh(&buffer.slice(..bytes.len()), bytes).w()?;
    stream.synchronize().w()
}

/// Words on the device, with page-locked memory that they are copied from.
pub(crate) struct Inputs {
    staged: PinnedHostSlice<u32>,
    words: CudaSlice<u32>,
}

impl Inputs {
    pub fn new(device: &CudaDevice, len: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        // SAFETY: both are written before they are read.
        let (staged, words) = unsafe { (stream.context().alloc_pinned(len).w()?, device.alloc(len)?) };
        Ok(Self { staged, words })
    }

    pub fn pointer(&self) -> Pointer {
        Pointer(self.words.device_ptr(self.words.stream()).0)
    }

    pub fn fill(&mut self, words: &[u32]) -> Result<()> {
        self.staged.as_mut_slice().w()?[..words.len()].copy_from_slice(words);
        let stream = self.words.stream().clone();
        stream.memcpy_htod(&self.staged, &mut self.words).w()
    }
}

/// What one thread queues on the device's stream meanwhile; memory that is taken and freed again becomes part of it.
pub(super) fn record(device: &CudaDevice, work: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
    let stream = device.cuda_stream();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let done = work();
    // The capture ends whatever the work did; an error that a tensor's end has left behind would keep it open.
    let _ = stream.context().check_err();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    let _ = stream.context().check_err();
    done?;
    graph
}

pub(super) fn replay(device: &CudaDevice, graph: &CudaGraph) -> Result<()> {
    match graph.launch() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            release_freed_memory(device)?;
            graph.launch().w()
        }
        other => other.w(),
    }
}

/// Hands back what tensors have freed: it stays in their pool, where recorded work cannot use it.
fn release_freed_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    // SAFETY: the device is open, and a pool keeps what is in use.
    unsafe {
        let pool = result::device::get_default_mem_pool(stream.context().cu_device()).w()?;
        sys::cuMemPoolTrimTo(pool, 0).result().w()
    }
}

fn data_type(dtype: DType) -> Result<blas::cudaDataType> {
    match dtype {
        DType::F32 => Ok(blas::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(blas::cudaDataType::CUDA_R_16BF),
        other => bail!("a product of {other:?} on the GPU"),
    }
}

/// Row-major `dst = a b` is column-major `dstᵀ = bᵀ aᵀ`: the operands change places.
pub(super) fn product(device: &CudaDevice, product: Product<'_>) -> Result<()> {
    use blas::cublasOperation_t::{CUBLAS_OP_N as STRAIGHT, CUBLAS_OP_T as TURNED};
    let Product { m, n, k, form, dst, a, b, accumulate } = product;
    let (turn_b, turn_a) = match form {
        Form::Nt => (TURNED, STRAIGHT),
        Form::Nn => (STRAIGHT, STRAIGHT),
        Form::Tn => (STRAIGHT, TURNED),
    };
    let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
    let scalar = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    let stride = |view: &super::View<'_>| view.matrix.stride as i32;
    let compute = if a.1.dtype == DType::F32 && candle_core::cuda_backend::gemm_reduced_precision_f32() {
        blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        blas::cublasComputeType_t::CUBLAS_COMPUTE_32F
    };
    device.cuda_stream().context().bind_to_thread().w()?;
    // SAFETY: the caller has checked the sizes against the memory behind the pointers.
    unsafe {
        cublas::gemm_ex(
            *device.cublas_handle().handle(),
            turn_b,
            turn_a,
            n as i32,
            m as i32,
            k as i32,
            scalar(&alpha),
            b.0.0 as *const c_void,
            data_type(b.1.dtype)?,
            stride(&b.1),
            a.0.0 as *const c_void,
            data_type(a.1.dtype)?,
            stride(&a.1),
            scalar(&beta),
            dst.0.0 as *mut c_void,
            data_type(dst.1.dtype)?,
            stride(&dst.1),
            compute,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
        .w()
    }
}
