//! The way to the kernels for a GPU: views of tensors, launches, products.
//!
//! Every operation asks [`of`] whether its tensors live on a GPU; if so it launches the kernel of the same name from the
//! `.cu` file beside it. Values and activations are f32 or bf16 there, gradients of weights and logits f32. Work is
//! queued on one stream, in order; nothing waits for it but a download.
//!
//! The unit tests run the same kernels and the same launches on the CPU (`emulated.rs`), on tensors of the CPU.

#![cfg_attr(
    not(any(feature = "cuda", all(test, emulation))),
    allow(unused, unreachable_code, reason = "without a place to launch kernels, nothing is launched")
)]
#![allow(clippy::unnecessary_wraps, reason = "a GPU fails where its emulation cannot")]

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(all(test, emulation))]
mod emulated;
mod matmul;
#[cfg(all(test, any(emulation, feature = "cuda")))]
mod tests;

#[cfg(all(test, emulation))]
pub(crate) use emulated::emulate;
pub(crate) use matmul::BLOCK_ROWS;

use super::storage::{extent, geometry};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Where kernels are launched. Without the feature `cuda` there is no such place.
#[derive(Clone)]
pub(crate) enum Gpu {
    #[cfg(feature = "cuda")]
    Cuda(candle_core::CudaDevice),
    #[cfg(all(test, emulation))]
    Emulated,
}

/// The GPU that a tensor lives on.
pub(crate) fn of(tensor: &Tensor) -> Option<Gpu> {
    of_device(tensor.device())
}

/// The GPU that a device is.
pub(crate) fn of_device(device: &Device) -> Option<Gpu> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return Some(Gpu::Cuda(device.clone()));
    }
    #[cfg(all(test, emulation))]
    if emulated::is_on() {
        return Some(Gpu::Emulated);
    }
    let _ = device;
    None
}

/// An address in the memory of the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pointer(pub u64);

impl Pointer {
    /// What a kernel takes for "none".
    pub const NULL: Self = Self(0);
}

/// A matrix as kernels see it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Matrix {
    pub data: Pointer,
    pub rows: u32,
    pub cols: u32,
    pub stride: u64,
}

/// A tensor as kernels see it, as long as the tensor lives.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub matrix: Matrix,
    pub dtype: DType,
    /// Rows from the first of the view to the end of its memory.
    capacity: usize,
    tensor: PhantomData<&'a Tensor>,
}

impl View<'_> {
    pub fn rows(&self) -> usize {
        self.matrix.rows as usize
    }

    pub fn cols(&self) -> usize {
        self.matrix.cols as usize
    }

    fn at_row(&self, row: usize) -> Pointer {
        Pointer(self.matrix.data.0 + (row as u64 * self.matrix.stride) * self.dtype.size_in_bytes() as u64)
    }
}

/// Memory of the GPU that is no tensor.
pub(crate) enum Buffer {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Bytes),
    #[cfg(all(test, emulation))]
    Host(emulated::Bytes),
}

impl Buffer {
    pub fn pointer(&self) -> Pointer {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref bytes) => cuda::address(bytes),
            #[cfg(all(test, emulation))]
            Self::Host(ref bytes) => Pointer(bytes.as_ptr() as u64),
        }
    }

    /// The address of value `index` of those that have `size` bytes each.
    pub fn at(&self, index: usize, size: usize) -> Pointer {
        Pointer(self.pointer().0 + (index * size) as u64)
    }
}

/// What may be handed to a kernel by value, or copied between the GPU and the program.
///
/// # Safety
/// The type is laid out as its counterpart in the kernels and has no padding.
pub(crate) unsafe trait Plain {}

// SAFETY: numbers, and structs of them that are laid out as in C.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}
// SAFETY: as above.
unsafe impl Plain for Pointer {}
// SAFETY: as above.
unsafe impl Plain for Matrix {}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Arg<'a>(*const c_void, PhantomData<&'a ()>);

/// An argument of a kernel: the type must be the one that the kernel declares.
pub(crate) fn arg<T: Plain>(value: &T) -> Arg<'_> {
    Arg(std::ptr::from_ref(value).cast(), PhantomData)
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    pub blocks: [u32; 3],
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// Threads of a block where nothing asks for another number.
const THREADS: u32 = 256;
/// The most that there can be.
const MAX_THREADS: u32 = 1024;
/// The most blocks in the second direction of a grid.
const MAX_ACROSS: usize = 65_535;

impl Launch {
    /// A thread an element, up to a number of blocks that fills any GPU: kernels go on in steps of the grid.
    pub fn elements(count: usize) -> Self {
        Self::blocks(count.div_ceil(THREADS as usize).min(1 << 14))
    }

    /// Blocks for each row, each with several columns a thread.
    pub fn rows(rows: usize, cols: usize) -> Self {
        const COLUMNS: usize = 8 * THREADS as usize;
        let across = cols.div_ceil(COLUMNS).min(MAX_ACROSS) as u32;
        Self { blocks: [rows as u32, across, 1], threads: THREADS, shared: 0 }
    }

    /// A wide block for each row: few rows, each of a whole vocabulary.
    pub fn wide(rows: usize) -> Self {
        Self { blocks: [rows as u32, 1, 1], threads: MAX_THREADS, shared: 0 }
    }

    /// This many blocks.
    pub fn blocks(blocks: usize) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads: THREADS, shared: 0 }
    }
}

/// The kernel of a name for values of a type.
///
/// # Errors
/// Fails for types that there are no kernels for.
pub(crate) fn kernel(name: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{name}_f32")),
        DType::BF16 => Ok(format!("{name}_bf16")),
        other => bail!("{name} on a GPU: values of type {other:?}"),
    }
}

impl Gpu {
    /// A tensor of rank 1 or 2 as kernels see it.
    ///
    /// # Errors
    /// Fails where its rows are not contiguous or it lives elsewhere.
    pub fn view<'a>(&self, tensor: &'a Tensor) -> Result<View<'a>> {
        let (storage, layout) = tensor.storage_and_layout();
        let (offset, rows, cols, stride) = geometry(layout)?;
        // One row of a wider matrix is laid out as many are: products must not be told another stride for it.
        let stride = if let [wide, _] = *layout.stride() { wide.max(cols) } else { stride };
        let (start, len): (Pointer, usize) = match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => cuda::storage(device, &storage)?,
            #[cfg(all(test, emulation))]
            Self::Emulated => emulated::storage(&storage)?,
        };
        let dtype = tensor.dtype();
        let data = Pointer(start.0 + (offset * dtype.size_in_bytes()) as u64);
        let left = len - offset;
        let capacity = if left < cols { 0 } else { (left - cols) / stride.max(1) + 1 };
        debug_assert!(extent(rows, cols, stride) <= left);
        let matrix = Matrix { data, rows: rows as u32, cols: cols as u32, stride: stride as u64 };
        Ok(View { matrix, dtype, capacity, tensor: PhantomData })
    }

    /// Runs a kernel after everything that was queued before it.
    ///
    /// # Errors
    /// Fails where the kernel cannot be launched.
    pub fn launch(&self, kernel: &str, launch: Launch, args: &[Arg<'_>]) -> Result<()> {
        if launch.blocks.contains(&0) {
            return Ok(());
        }
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => cuda::launch(device, kernel, launch, args),
            #[cfg(all(test, emulation))]
            Self::Emulated => emulated::launch(kernel, launch, args),
        }
    }

    /// Looks a kernel up, which loads them all.
    ///
    /// # Errors
    /// Fails with the driver's reason.
    #[cfg(feature = "cuda")]
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Cuda(device) => cuda::function(device, "sum_of_squares").map(drop),
            #[cfg(all(test, emulation))]
            Self::Emulated => Ok(()),
        }
    }

    /// Adds the sum of each column of `x` to `sum`, f32.
    ///
    /// # Errors
    /// Fails where `sum` has another length than a row of `x`.
    pub fn add_column_sums(&self, x: &Tensor, sum: &Tensor) -> Result<()> {
        let (x, sum) = (self.view(x)?, self.view(sum)?);
        if sum.rows() * sum.cols() != x.cols() || sum.dtype != DType::F32 {
            bail!("sums of {} columns into {} values", x.cols(), sum.rows() * sum.cols());
        }
        let args = [arg(&x.matrix), arg(&sum.matrix.data)];
        self.launch(&kernel("add_column_sums", x.dtype)?, Launch::blocks(x.cols().div_ceil(32)), &args)
    }

    /// Copies the values of `from` to `to`, which has its shape and type.
    ///
    /// # Errors
    /// Fails where the tensors live elsewhere.
    pub fn copy_rows(&self, to: &Tensor, from: &Tensor) -> Result<()> {
        let (to, from) = (self.view(to)?, self.view(from)?);
        let args = [arg(&to.matrix), arg(&from.matrix)];
        self.launch(&kernel("copy_rows", to.dtype)?, Launch::rows(to.rows(), to.cols()), &args)
    }

    /// A copy of `values` on the GPU.
    ///
    /// # Errors
    /// Fails where the memory is short.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer> {
        // SAFETY: `Plain` types have no padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => cuda::upload(device, bytes).map(Buffer::Cuda),
            #[cfg(all(test, emulation))]
            Self::Emulated => Ok(Buffer::Host(emulated::upload(bytes))),
        }
    }

    /// Memory for `len` values, which a kernel will write.
    ///
    /// # Errors
    /// Fails where the memory is short.
    pub fn buffer<T: Plain>(&self, len: usize) -> Result<Buffer> {
        let bytes = len * size_of::<T>();
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => cuda::buffer(device, bytes).map(Buffer::Cuda),
            #[cfg(all(test, emulation))]
            Self::Emulated => Ok(Buffer::Host(emulated::upload(&vec![0xff; bytes]))),
        }
    }

    /// The first `len` values of a buffer, after all that was queued has run.
    ///
    /// # Errors
    /// Fails where something queued before has failed.
    pub fn download<T: Plain + Copy + Default>(&self, buffer: &Buffer, len: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); len];
        // SAFETY: `Plain` types are numbers or made of them: any bytes are values.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(&*values)) };
        match (self, buffer) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(device), Buffer::Cuda(buffer)) => cuda::download(device, buffer, bytes)?,
            #[cfg(all(test, emulation))]
            (Self::Emulated, Buffer::Host(buffer)) => bytes.copy_from_slice(&buffer.bytes()[..bytes.len()]),
            #[allow(unreachable_patterns, reason = "one of two when both kinds are compiled in")]
            _ => bail!("a buffer of another device"),
        }
        Ok(values)
    }
}

/// Numbers that the program knows and kernels want, copied to the GPU when first asked for.
#[derive(Default)]
pub(crate) struct Shared {
    place: OnceLock<Place>,
}

/// Numbers on the GPU: a copy that lives as long as this, or what somebody else keeps there.
pub(crate) enum Place {
    Copied(Buffer),
    Given(Pointer),
}

impl Place {
    pub fn pointer(&self) -> Pointer {
        match self {
            Self::Copied(buffer) => buffer.pointer(),
            Self::Given(pointer) => *pointer,
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.place.get() {
            None => "Shared",
            Some(Place::Copied(_)) => "Shared(copied)",
            Some(Place::Given(_)) => "Shared(given)",
        })
    }
}

impl Shared {
    /// Numbers that are on the GPU already, and stay there as long as this is used.
    pub fn given(pointer: Pointer) -> Self {
        Self { place: OnceLock::from(Place::Given(pointer)) }
    }

    /// Where the copy of `values` is; they must be the same in every call.
    ///
    /// # Errors
    /// Fails where the memory is short.
    pub fn of<T: Plain>(&self, gpu: &Gpu, values: impl FnOnce() -> Vec<T>) -> Result<Pointer> {
        if let Some(place) = self.place.get() {
            return Ok(place.pointer());
        }
        let copied = Place::Copied(gpu.upload(&values())?);
        Ok(self.place.get_or_init(|| copied).pointer())
    }
}

/// Words in one place on the GPU that change between runs of recorded work.
pub(crate) enum Inputs {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Inputs),
    #[cfg(all(test, emulation))]
    Host(emulated::Bytes),
}

impl Inputs {
    /// The address of word `index`.
    pub fn at(&self, index: usize) -> Pointer {
        let start: Pointer = match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref inputs) => inputs.pointer(),
            #[cfg(all(test, emulation))]
            Self::Host(ref bytes) => Pointer(bytes.as_ptr() as u64),
        };
        Pointer(start.0 + 4 * index as u64)
    }

    /// Replaces the words for all that is queued from now on; what was queued before must have run.
    ///
    /// # Errors
    /// Fails where the GPU has failed.
    pub fn fill(&mut self, words: &[u32]) -> Result<()> {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref mut inputs) => inputs.fill(words),
            #[cfg(all(test, emulation))]
            Self::Host(ref mut bytes) => {
                bytes.fill(words);
                Ok(())
            }
        }
    }
}

/// Launches that were recorded, to be queued again at once.
pub(crate) enum Recording {
    #[cfg(feature = "cuda")]
    Cuda(candle_core::CudaDevice, cuda::CudaGraph),
}

impl Recording {
    /// Queues the launches.
    ///
    /// # Errors
    /// Fails where the GPU has failed.
    pub fn replay(&self) -> Result<()> {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device, ref graph) => cuda::replay(device, graph),
        }
    }
}

impl Gpu {
    /// Room for `len` words.
    ///
    /// # Errors
    /// Fails where the memory is short.
    pub fn inputs(&self, len: usize) -> Result<Inputs> {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => cuda::Inputs::new(device, len).map(Inputs::Cuda),
            #[cfg(all(test, emulation))]
            Self::Emulated => Ok(Inputs::Host(emulated::upload(&vec![0xff; 4 * len]))),
        }
    }

    /// Records what `work` queues instead of running it. `None`: this GPU does not record.
    ///
    /// # Errors
    /// Fails where `work` does, or does what cannot be recorded.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => {
                cuda::record(device, work).map(|graph| graph.map(|graph| Recording::Cuda(device.clone(), graph)))
            }
            #[cfg(all(test, emulation))]
            Self::Emulated => {
                drop(work);
                Ok(None)
            }
        }
    }
}
