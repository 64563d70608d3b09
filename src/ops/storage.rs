//! Rows behind candle tensors: read views and in-place updates for the CPU kernels, and memory for results.

use super::gpu;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use std::cell::Cell;
use std::ops::Range;

/// A matrix view: `rows` rows of `cols` values, the first value of each `stride` after the last row's.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a> Mat<'a> {
    /// The view of contiguous `data` as `[rows, cols]`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, stride: cols }
    }

    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.cols]
    }

    /// The view of some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Mat<'a> {
        debug_assert!(rows.end <= self.rows);
        let len = extent(rows.len(), self.cols, self.stride);
        Mat {
            data: if len == 0 { &[] } else { &self.data[rows.start * self.stride..][..len] },
            rows: rows.len(),
            ..*self
        }
    }

    /// The view of columns `start..start + len`.
    pub fn columns(&self, start: usize, len: usize) -> Mat<'a> {
        debug_assert!(start + len <= self.cols);
        Mat { data: &self.data[start..], rows: self.rows, cols: len, stride: self.stride }
    }
}

/// The mutable counterpart of [`Mat`].
pub(crate) struct MatMut<'a> {
    pub data: &'a mut [f32],
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a> MatMut<'a> {
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { data, rows, cols, stride: cols }
    }

    pub fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride..][..self.cols]
    }

    /// The part of the matrix in these rows and columns.
    pub fn block(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatMut<'_> {
        debug_assert!(rows.end <= self.rows && columns.end <= self.cols);
        let (start, len) = (rows.start * self.stride + columns.start, extent(rows.len(), columns.len(), self.stride));
        MatMut { data: &mut self.data[start..start + len], rows: rows.len(), cols: columns.len(), stride: self.stride }
    }
}

/// `(offset, rows, cols, stride)` of a tensor seen as a matrix: rank 2 with unit column stride, or rank 1 as one row.
pub(super) fn geometry(layout: &Layout) -> Result<(usize, usize, usize, usize)> {
    let (dims, stride) = (layout.dims(), layout.stride());
    match *dims {
        [cols] if cols <= 1 || stride[0] == 1 => Ok((layout.start_offset(), 1, cols, cols)),
        [rows, cols] if cols <= 1 || stride[1] == 1 => {
            // A single row may carry any row stride.
            Ok((layout.start_offset(), rows, cols, if rows <= 1 { cols } else { stride[0] }))
        }
        _ => bail!("expected a matrix of contiguous rows, got shape {dims:?} with strides {stride:?}"),
    }
}

pub(super) fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// A read view of a tensor whose storage guard the caller holds: `let (s, l) = t.storage_and_layout(); mat(&s, l)?`.
pub(crate) fn mat<'a>(storage: &'a Storage, layout: &Layout) -> Result<Mat<'a>> {
    let Storage::Cpu(CpuStorage::F32(values)) = storage else {
        bail!("expected an f32 tensor on the CPU");
    };
    let (offset, rows, cols, stride) = geometry(layout)?;
    Ok(Mat { data: &values[offset..offset + extent(rows, cols, stride)], rows, cols, stride })
}

/// A call that has not happened yet, and what it gave; candle lends an operation to itself without `mut`.
struct Update<F, R>(Cell<Option<F>>, Cell<Option<R>>);

impl<R, F: FnOnce(MatMut<'_>) -> Result<R>> InplaceOp1 for Update<F, R> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else {
            bail!("expected an f32 tensor on the CPU");
        };
        let (offset, rows, cols, stride) = geometry(layout)?;
        let data = &mut values[offset..offset + extent(rows, cols, stride)];
        if let Some(f) = self.0.take() {
            self.1.set(Some(f(MatMut { data, rows, cols, stride })?));
        }
        Ok(())
    }
}

/// Changes a tensor in place, and returns what `f` does; every tensor that shares its storage sees the change.
pub(crate) fn update<R>(tensor: &Tensor, f: impl FnOnce(MatMut<'_>) -> Result<R>) -> Result<R> {
    let update = Update(Cell::new(Some(f)), Cell::new(None));
    tensor.inplace_op1(&update)?;
    update.1.into_inner().ok_or_else(|| candle_core::Error::msg("an update in place that was not called").bt())
}

/// A matrix for results, of the type and on the device of `like`: whoever asks for it writes every element before one
/// is read. Where assertions are on, the elements are NaN until then, so that tests see one that was forgotten.
///
/// # Errors
/// Fails where it cannot be allocated.
pub(crate) fn unset(rows: usize, cols: usize, like: &Tensor) -> Result<Tensor> {
    unset_as(rows, cols, like.dtype(), like.device())
}

/// [`unset`] with another type.
pub(crate) fn unset_as(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    // Products on a GPU write whole blocks of rows.
    let capacity = if gpu::of_device(device).is_some() { rows.next_multiple_of(gpu::BLOCK_ROWS) } else { rows };
    let matrix = if cfg!(any(test, debug_assertions)) && capacity * cols > 0 {
        Tensor::full(f32::NAN, (capacity, cols), device)?.to_dtype(dtype)?
    } else {
        // SAFETY: the caller's promise; clearing large matrices takes a noticeable part of a step.
        unsafe { Tensor::empty((capacity, cols), dtype, device)? }
    };
    if capacity == rows { Ok(matrix) } else { matrix.narrow(0, 0, rows) }
}

/// Copies the elements of a tensor of the same shape and type, of rank 1 or 2.
///
/// # Errors
/// Fails where shapes or types differ.
pub(crate) fn copy(to: &Tensor, from: &Tensor) -> Result<()> {
    if to.dims() != from.dims() || to.dtype() != from.dtype() {
        bail!("copy of {:?} to {:?}", from.shape(), to.shape());
    }
    if let Some(gpu) = gpu::of(to) {
        return gpu.copy_rows(to, from);
    }
    let (storage, layout) = from.storage_and_layout();
    let from = mat(&storage, layout)?;
    update(to, |mut to| {
        (0..to.rows).for_each(|row| to.row(row).copy_from_slice(from.row(row)));
        Ok(())
    })
}

/// Sets every element to zero.
///
/// # Errors
/// Fails for tensors that are not f32.
pub(crate) fn zero(tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cuda() {
        return tensor.zero_set();
    }
    let flat = tensor.flatten_all()?;
    update(&flat, |m| {
        m.data.fill(0.0);
        Ok(())
    })
}

/// A raw pointer that may cross threads, for kernels whose tasks write disjoint parts of one buffer.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: the users of `Shared` hand each task its own range; see `Shared::slice`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// The `len` values from `start`, to read.
    ///
    /// # Safety
    /// The range lies within the buffer, the buffer outlives the slice, and no task writes to it meanwhile.
    pub unsafe fn read<'a>(&self, start: usize, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(start), len) }
    }

    /// The `len` values from `start`.
    ///
    /// # Safety
    /// The range lies within the buffer, the buffer outlives the slice, and no two tasks hold overlapping ranges.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
