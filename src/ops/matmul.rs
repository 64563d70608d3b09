//! Matrix products on row views: through the `gemm` crate in general, and with own kernels (`packed.rs`, `tile.rs`) where
//! one weight meets few rows again and again.

mod packed;
mod tile;

pub(crate) use packed::{Packed, matmul_packed};

use super::gpu;
use super::math::LANES;
use super::storage::{Mat, MatMut, mat, update};
use candle_core::{Result, Tensor, bail};
use gemm::Parallelism;

/// Which operands are read transposed; the names give the stored shapes of `a` and `b` for a result `[M, N]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `a [M, K]`, `b [N, K]`: a forward pass through a weight stored as `[out, in]`.
    Nt,
    /// `a [M, K]`, `b [K, N]`: the gradient of that pass's input.
    Nn,
    /// `a [K, M]`, `b [K, N]`: the gradient of its weight.
    Tn,
}

/// `dst = a b` or, with `accumulate`, `dst += a b`.
pub(crate) fn matmul(dst: &mut MatMut<'_>, a: Mat<'_>, b: Mat<'_>, form: Form, accumulate: bool) -> Result<()> {
    let (m, n) = check(dst, a, b, form)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    match form {
        Form::Nt => forward(dst, a, b, accumulate),
        Form::Nn | Form::Tn => call(dst, a, b, form, accumulate, parallelism()),
    }
    Ok(())
}

/// [`matmul`] on the calling thread alone, for tasks that are parallel already. The bits of a row may depend on its
/// neighbours: not for forward passes.
pub(crate) fn matmul_in_task(dst: &mut MatMut<'_>, a: Mat<'_>, b: Mat<'_>, form: Form, accumulate: bool) -> Result<()> {
    let (m, n) = check(dst, a, b, form)?;
    if m > 0 && n > 0 {
        call(dst, a, b, form, accumulate, Parallelism::None);
    }
    Ok(())
}

/// The size of the result, where the operands fit.
fn check(dst: &MatMut<'_>, a: Mat<'_>, b: Mat<'_>, form: Form) -> Result<(usize, usize)> {
    let (m, k, n, k2) = match form {
        Form::Nt => (a.rows, a.cols, b.rows, b.cols),
        Form::Nn => (a.rows, a.cols, b.cols, b.rows),
        Form::Tn => (a.cols, a.rows, b.cols, b.rows),
    };
    if (dst.rows, dst.cols) != (m, n) || k != k2 {
        bail!(
            "matmul {form:?}: [{}, {}] by [{}, {}] into [{}, {}]",
            a.rows,
            a.cols,
            b.rows,
            b.cols,
            dst.rows,
            dst.cols
        );
    }
    Ok((m, n))
}

/// The smallest product with rows contiguous in K that gemm hands to its general kernel instead of the one that sums
/// along K in vector lanes.
const GENERAL_KERNEL: usize = 16 * 16 + 1;
/// The depth that gemm sums in one go, whatever the other sizes.
const DEPTH: usize = 512;

/// The forward product, so that a row's bits do not depend on how many rows stand beside it.
///
/// gemm picks a kernel, and with it the order of the sum over K, by the sizes: tiny products go to another kernel, which
/// rows of zeros avoid, and the depth of a block varies, which cutting K here avoids. What is left is one order: chains
/// of multiply-adds over [`DEPTH`] values, whose results are added from the first to the last. `linear.rs` tests that
/// rows are independent, `packed.rs` that it computes the same.
fn forward(dst: &mut MatMut<'_>, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    let rows = GENERAL_KERNEL.div_ceil(dst.cols).max(2);
    if a.rows < rows {
        let mut padded = vec![0.0f32; rows * a.cols];
        for row in 0..a.rows {
            padded[row * a.cols..][..a.cols].copy_from_slice(a.row(row));
        }
        let mut result = vec![0.0f32; rows * dst.cols];
        let mut wide = MatMut::new(&mut result, rows, dst.cols);
        blocks(&mut wide, Mat::new(&padded, rows, a.cols), b, false);
        for row in 0..a.rows {
            let from = &result[row * dst.cols..][..dst.cols];
            if accumulate {
                dst.row(row).iter_mut().zip(from).for_each(|(d, f)| *d += f);
            } else {
                dst.row(row).copy_from_slice(from);
            }
        }
    } else {
        blocks(dst, a, b, accumulate);
    }
}

fn blocks(dst: &mut MatMut<'_>, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    // A sum of nothing is written, too.
    for start in (0..a.cols.max(1)).step_by(DEPTH) {
        let depth = DEPTH.min(a.cols - start);
        let (a, b) = (a.columns(start, depth), b.columns(start, depth));
        call(dst, a, b, Form::Nt, accumulate || start > 0, parallelism());
    }
}

/// All threads of the current pool.
fn parallelism() -> Parallelism {
    let threads = rayon::current_num_threads();
    if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None }
}

/// One product of checked sizes.
fn call(dst: &mut MatMut<'_>, a: Mat<'_>, b: Mat<'_>, form: Form, accumulate: bool, parallelism: Parallelism) {
    let (m, n) = (dst.rows, dst.cols);
    // (column stride, row stride) of each operand as gemm reads it.
    let straight = |x: &Mat<'_>| (1isize, x.stride as isize);
    let turned = |x: &Mat<'_>| (x.stride as isize, 1isize);
    let (k, (a_cs, a_rs), (b_cs, b_rs)) = match form {
        Form::Nt => (a.cols, straight(&a), turned(&b)),
        Form::Nn => (a.cols, straight(&a), straight(&b)),
        Form::Tn => (a.rows, turned(&a), straight(&b)),
    };
    // SAFETY: `matmul` has checked the sizes, and a view's slice covers its rows; `dst` is exclusively borrowed.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            1,
            dst.stride as isize,
            accumulate,
            a.data.as_ptr(),
            a_cs,
            a_rs,
            b.data.as_ptr(),
            b_cs,
            b_rs,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// [`matmul`] on tensors; `dst` is changed in place and may be a column range of a wider matrix.
pub(crate) fn matmul_into(dst: &Tensor, a: &Tensor, b: &Tensor, form: Form, accumulate: bool) -> Result<()> {
    if let Some(gpu) = gpu::of(dst) {
        return gpu.matmul(dst, a, b, form, accumulate);
    }
    let (a_storage, a_layout) = a.storage_and_layout();
    let (b_storage, b_layout) = b.storage_and_layout();
    let (a, b) = (mat(&a_storage, a_layout)?, mat(&b_storage, b_layout)?);
    update(dst, |mut dst| matmul(&mut dst, a, b, form, accumulate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    /// Every form, with and without accumulation, on odd sizes and column ranges, equals the sum written out.
    #[test]
    fn matches_the_definition() -> Result<()> {
        for (m, k, n) in [(1, 1, 1), (1, 7, 3), (5, 33, 9), (17, 600, 12), (40, 130, 70)] {
            for form in [Form::Nt, Form::Nn, Form::Tn] {
                let a = match form {
                    Form::Tn => random(&[k, m], 1),
                    _ => random(&[m, k], 1),
                };
                let b = match form {
                    Form::Nt => random(&[n, k], 2),
                    _ => random(&[k, n], 2),
                };
                let (left, right) = match form {
                    Form::Nt => (a.clone(), b.t()?.contiguous()?),
                    Form::Nn => (a.clone(), b.clone()),
                    Form::Tn => (a.t()?.contiguous()?, b.clone()),
                };
                let product = left.matmul(&right)?.to_vec2::<f32>()?;
                for accumulate in [false, true] {
                    let wide = random(&[m, n + 5], 3);
                    let before = wide.copy()?.to_vec2::<f32>()?;
                    matmul_into(&wide.narrow(1, 2, n)?, &a, &b, form, accumulate)?;
                    let after = wide.to_vec2::<f32>()?;
                    for row in 0..m {
                        for col in 0..n + 5 {
                            let inside = (2..n + 2).contains(&col);
                            let expected = match (inside, accumulate) {
                                (true, true) => before[row][col] + product[row][col - 2],
                                (true, false) => product[row][col - 2],
                                (false, _) => before[row][col],
                            };
                            let got = after[row][col];
                            assert!((got - expected).abs() < 1e-3, "{form:?} {m} {k} {n}: {got} {expected}");
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
