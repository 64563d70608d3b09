//! Token embedding: rows of a table, by id.

use super::Weight;
use super::gpu::{self, Gpu, Launch, Pointer, Shared, arg, kernel as typed};
use super::storage::{mat, unset, update};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::BTreeMap;

/// The rows of the table named by `ids`.
///
/// # Shapes
/// `table [V, D]`, `ids [N] -> [N, D]`
///
/// # Errors
/// Fails for an id outside the table.
pub fn embedding(table: &Weight, ids: &[u32]) -> Result<Tensor> {
    gather_rows(table.value(), ids)
}

/// [`embedding`] of ids that are on the GPU.
pub(crate) fn embedding_of(table: &Weight, ids: &RowNumbers<'_>) -> Result<Tensor> {
    let Some(gpu) = gpu::of(table.value()) else { bail!("expected a table on a GPU") };
    gather_on_gpu(&gpu, table.value(), ids)
}

/// Row `rows[i]` of `x` as row i of a new matrix; `x [N, D]`.
///
/// # Errors
/// Fails for a row outside `x`.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if let Some(gpu) = gpu::of(x) {
        return gather_on_gpu(&gpu, x, &RowNumbers::new(rows));
    }
    let (storage, layout) = x.storage_and_layout();
    let view = mat(&storage, layout)?;
    let mut values = Vec::with_capacity(rows.len() * view.cols);
    check_rows(rows, view.rows)?;
    for row in rows {
        values.extend_from_slice(view.row(*row as usize));
    }
    Tensor::from_vec(values, (rows.len(), view.cols), x.device())
}

/// Adds row i of `x` to row `rows[i]` of `sum`, in order; a row may be named more than once.
///
/// # Errors
/// Fails for a row outside `sum`.
pub fn scatter_add_rows(sum: &Tensor, rows: &[u32], x: &Tensor) -> Result<()> {
    if let Some(gpu) = gpu::of(sum) {
        return scatter_add_on_gpu(&gpu, sum, rows, x);
    }
    into_rows(sum, rows, x, |sum, x| sum.iter_mut().zip(x).for_each(|(s, x)| *s += x))
}

/// Copies row i of `x` over row `rows[i]` of `target`.
///
/// # Errors
/// Fails for a row outside `target`.
pub fn scatter_rows(target: &Tensor, rows: &RowNumbers<'_>, x: &Tensor) -> Result<()> {
    if let Some(gpu) = gpu::of(target) {
        let (to, from) = (gpu.view(target)?, gpu.view(x)?);
        check_rows(rows.rows, to.rows())?;
        check_scatter(rows.rows, (from.rows(), from.cols()), to.cols())?;
        let numbers = rows.on_gpu.of(&gpu, || rows.rows.to_vec())?;
        let args = [arg(&to.matrix), arg(&numbers), arg(&from.matrix)];
        return gpu.launch(&typed("scatter_rows", to.dtype)?, Launch::rows(from.rows(), from.cols()), &args);
    }
    into_rows(target, rows.rows, x, <[f32]>::copy_from_slice)
}

/// Numbers of rows that several calls name.
#[derive(Debug)]
pub struct RowNumbers<'a> {
    rows: &'a [u32],
    on_gpu: Shared,
}

impl<'a> RowNumbers<'a> {
    #[must_use]
    pub fn new(rows: &'a [u32]) -> Self {
        Self { rows, on_gpu: Shared::default() }
    }

    /// Numbers that are on the GPU already, and stay there.
    pub(crate) fn given(rows: &'a [u32], at: Pointer) -> Self {
        Self { rows, on_gpu: Shared::given(at) }
    }
}

fn gather_on_gpu(gpu: &Gpu, x: &Tensor, rows: &RowNumbers<'_>) -> Result<Tensor> {
    let from = gpu.view(x)?;
    check_rows(rows.rows, from.rows())?;
    let y = unset(rows.rows.len(), from.cols(), x)?;
    let (to, numbers) = (gpu.view(&y)?, rows.on_gpu.of(gpu, || rows.rows.to_vec())?);
    let args = [arg(&from.matrix), arg(&numbers), arg(&to.matrix)];
    gpu.launch(&typed("gather_rows", from.dtype)?, Launch::rows(to.rows(), to.cols()), &args)?;
    Ok(y)
}

/// Rows that go to one row are summed by one block, in order.
fn scatter_add_on_gpu(gpu: &Gpu, sum: &Tensor, rows: &[u32], x: &Tensor) -> Result<()> {
    let (to, from) = (gpu.view(sum)?, gpu.view(x)?);
    check_rows(rows, to.rows())?;
    check_scatter(rows, (from.rows(), from.cols()), to.cols())?;
    let mut by_target: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        by_target.entry(*row).or_default().push(i as u32);
    }
    let targets: Vec<u32> = by_target.keys().copied().collect();
    let mut starts = vec![0];
    starts.extend(by_target.values().scan(0, |end, group| {
        *end += group.len() as u32;
        Some(*end)
    }));
    let order: Vec<u32> = by_target.into_values().flatten().collect();
    let (targets, starts, order) = (gpu.upload(&targets)?, gpu.upload(&starts)?, (gpu.upload(&order)?, targets.len()));
    let of_a_weight = to.dtype == DType::F32 && from.dtype != DType::F32;
    let name = if of_a_weight { "scatter_add_gradient" } else { "scatter_add_rows" };
    let launch = Launch::rows(order.1, from.cols());
    let pointers = (targets.pointer(), starts.pointer(), order.0.pointer());
    let args = [arg(&to.matrix), arg(&pointers.0), arg(&pointers.1), arg(&pointers.2), arg(&from.matrix)];
    gpu.launch(&typed(name, from.dtype)?, launch, &args)
}

fn check_rows(rows: &[u32], num_rows: usize) -> Result<()> {
    match rows.iter().find(|row| **row as usize >= num_rows) {
        Some(row) => bail!("row {row} of a matrix with {num_rows} rows"),
        None => Ok(()),
    }
}

fn check_scatter(rows: &[u32], x: (usize, usize), width: usize) -> Result<()> {
    if x != (rows.len(), width) {
        bail!("scatter of [{}, {}] by {} rows into width {width}", x.0, x.1, rows.len());
    }
    Ok(())
}

/// Calls `f(row rows[i] of target, row i of x)` for each i in order.
fn into_rows(target: &Tensor, rows: &[u32], x: &Tensor, f: fn(&mut [f32], &[f32])) -> Result<()> {
    let (storage, layout) = x.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(target, |mut target| {
        check_scatter(rows, (x.rows, x.cols), target.cols)?;
        check_rows(rows, target.rows)?;
        for (i, row) in rows.iter().enumerate() {
            f(target.row(*row as usize), x.row(i));
        }
        Ok(())
    })
}

/// Adds the gradient of [`embedding`] to the table's gradient; `g [N, D]`.
///
/// # Errors
/// Fails for an id outside the table.
pub fn embedding_backward(g: &Tensor, table: &Weight, ids: &[u32]) -> Result<()> {
    match table.grad() {
        Some(grad) => scatter_add_rows(grad, ids, g),
        None => Ok(()),
    }
}

/// A zeroed matrix of the type and on the device of `like`.
///
/// # Errors
/// Fails where it cannot be allocated.
pub fn zeros(rows: usize, cols: usize, like: &Tensor) -> Result<Tensor> {
    zeros_as(rows, cols, like.dtype(), like.device())
}

/// [`zeros`] with another type.
pub(super) fn zeros_as(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros((rows, cols), dtype, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, on_each_device, random, reference_gradients, variable};

    /// Repeated ids add up in the gradient.
    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            let (table, ids) = (random(&[9, 5], 1), [3u32, 8, 3, 0, 3]);
            let g = random(&[5, 5], 2);
            let tv = variable(&table);
            let y = tv.index_select(&Tensor::new(&ids[..], table.device())?, 0)?;
            let expected = reference_gradients(&y, &g, &[&tv])?;
            let weight = Weight::trainable(table)?;
            assert_close(&embedding(&weight, &ids)?, &y, 0.0);
            embedding_backward(&g, &weight, &ids)?;
            assert_close(weight.grad().expect("trainable"), &expected[0], 1e-6);
            Ok(())
        })
    }

    #[test]
    fn ids_outside_the_table_are_errors() {
        let weight = Weight::frozen(random(&[4, 2], 1));
        assert!(embedding(&weight, &[4]).is_err());
    }
}
