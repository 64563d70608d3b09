//! Products on a GPU: cuBLAS, with sums in f32.

use super::{Gpu, Pointer, View};
use crate::ops::matmul::Form;
use crate::ops::storage::unset;
use candle_core::{Result, Tensor, bail};

/// Rows of a forward product. cuBLAS picks a kernel, and with it the order of the sums, by the sizes: a product of
/// always as many rows gives a row the same bits whatever rows stand beside it.
pub(crate) const BLOCK_ROWS: usize = 256;

/// One product as the library takes it: sizes, and whether the stored operands are transposed.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub form: Form,
    pub dst: (Pointer, View<'a>),
    pub a: (Pointer, View<'a>),
    pub b: (Pointer, View<'a>),
    pub accumulate: bool,
}

impl Gpu {
    /// `dst = a b` or, with `accumulate`, `dst += a b`. In a forward product ([`Form::Nt`]) rows of memory behind the
    /// last row of `dst`, up to a multiple of [`BLOCK_ROWS`], may be written, too.
    ///
    /// # Errors
    /// Fails where shapes or types do not fit.
    pub fn matmul(&self, dst: &Tensor, a: &Tensor, b: &Tensor, form: Form, accumulate: bool) -> Result<()> {
        let (vd, va, vb) = (self.view(dst)?, self.view(a)?, self.view(b)?);
        let (m, k, n, k2) = match form {
            Form::Nt => (va.rows(), va.cols(), vb.rows(), vb.cols()),
            Form::Nn => (va.rows(), va.cols(), vb.cols(), vb.rows()),
            Form::Tn => (va.cols(), va.rows(), vb.cols(), vb.rows()),
        };
        if (vd.rows(), vd.cols()) != (m, n) || k != k2 || va.dtype != vb.dtype {
            bail!("matmul {form:?}: {:?} by {:?} into {:?}", a.shape(), b.shape(), dst.shape());
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let at = |view: View<'_>, row: usize| view.at_row(row);
        if form != Form::Nt {
            return self.product(Product {
                m,
                n,
                k,
                form,
                dst: (at(vd, 0), vd),
                a: (at(va, 0), va),
                b: (at(vb, 0), vb),
                accumulate,
            });
        }
        let padded = m.next_multiple_of(BLOCK_ROWS);
        if va.capacity < padded {
            let wide = unset(m, k, a)?;
            self.copy_rows(&wide, a)?;
            return self.matmul(dst, &wide, b, form, accumulate);
        }
        if vd.capacity < padded {
            let wide = unset(m, n, dst)?;
            if accumulate {
                self.copy_rows(&wide, dst)?;
            }
            self.matmul(&wide, a, b, form, accumulate)?;
            return self.copy_rows(dst, &wide);
        }
        for row in (0..m).step_by(BLOCK_ROWS) {
            let (dst, a, b) = ((at(vd, row), vd), (at(va, row), va), (at(vb, 0), vb));
            self.product(Product { m: BLOCK_ROWS, n, k, form, dst, a, b, accumulate })?;
        }
        Ok(())
    }

    fn product(&self, product: Product<'_>) -> Result<()> {
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref device) => super::cuda::product(device, product),
            #[cfg(all(test, emulation))]
            Self::Emulated => super::emulated::product(product),
        }
    }
}
