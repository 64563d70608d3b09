//! Token embedding: rows of a table, by id.

use super::Weight;
use super::storage::{mat, update};
use candle_core::{DType, Result, Tensor, bail};

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

/// Row `rows[i]` of `x` as row i of a new matrix; `x [N, D]`.
///
/// # Errors
/// Fails for a row outside `x`.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (storage, layout) = x.storage_and_layout();
    let view = mat(&storage, layout)?;
    let mut values = Vec::with_capacity(rows.len() * view.cols);
    for row in rows {
        if *row as usize >= view.rows {
            bail!("row {row} of a matrix with {} rows", view.rows);
        }
        values.extend_from_slice(view.row(*row as usize));
    }
    Tensor::from_vec(values, (rows.len(), view.cols), x.device())
}

/// Adds row i of `x` to row `rows[i]` of `sum`, in order; a row may be named more than once.
///
/// # Errors
/// Fails for a row outside `sum`.
pub fn scatter_add_rows(sum: &Tensor, rows: &[u32], x: &Tensor) -> Result<()> {
    into_rows(sum, rows, x, |sum, x| sum.iter_mut().zip(x).for_each(|(s, x)| *s += x))
}

/// Copies row i of `x` over row `rows[i]` of `target`.
///
/// # Errors
/// Fails for a row outside `target`.
pub fn scatter_rows(target: &Tensor, rows: &[u32], x: &Tensor) -> Result<()> {
    into_rows(target, rows, x, <[f32]>::copy_from_slice)
}

/// Calls `f(row rows[i] of target, row i of x)` for each i in order.
fn into_rows(target: &Tensor, rows: &[u32], x: &Tensor, f: fn(&mut [f32], &[f32])) -> Result<()> {
    let (storage, layout) = x.storage_and_layout();
    let x = mat(&storage, layout)?;
    update(target, |mut target| {
        if x.rows != rows.len() || x.cols != target.cols {
            bail!("scatter of [{}, {}] by {} rows into width {}", x.rows, x.cols, rows.len(), target.cols);
        }
        for (i, row) in rows.iter().enumerate() {
            if *row as usize >= target.rows {
                bail!("row {row} of a matrix with {} rows", target.rows);
            }
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

/// A zeroed matrix.
///
/// # Errors
/// Fails where it cannot be allocated.
pub fn zeros(rows: usize, cols: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::zeros((rows, cols), DType::F32, like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random, reference_gradients, variable};

    /// Repeated ids add up in the gradient.
    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
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
    }

    #[test]
    fn ids_outside_the_table_are_errors() {
        let weight = Weight::frozen(random(&[4, 2], 1));
        assert!(embedding(&weight, &[4]).is_err());
    }
}
