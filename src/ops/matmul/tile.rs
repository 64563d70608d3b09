//! The inner loops of a product with packed columns: a few rows by a few strips at a time, summed in registers.

use super::packed::Vector;
use crate::ops::math::LANES;
use crate::ops::simd::{kernel, wide};
use crate::ops::storage::Mat;

/// Strips that one product spans. [`ROWS`] by as many vectors of sums fill the registers of AVX-512.
pub(super) const STRIPS: usize = 3;
const ROWS: usize = 8;
/// The rows of a tile of one strip, which fills the registers of AVX2 and of NEON.
const NARROW_ROWS: usize = 6;

/// Sums of a row: a vector for each strip.
pub(super) type Sums = [Vector; STRIPS];

kernel! {
    /// `sums (+)= a b`: each sum runs on from its value, or from 0 with `fresh`, in one chain of multiply-adds over the
    /// columns of `a` in order.
    ///
    /// `b` holds the strips, from the first of these columns on; they lie `strip` vectors apart. `next` is where the
    /// strips of the next product start, which are asked for meanwhile.
    ///
    /// # Panics
    /// Panics where `b` or `sums` is too short.
    pub(super) fn multiply(
        a: Mat<'_>,
        b: &[Vector],
        next: *const Vector,
        strip: usize,
        strips: usize,
        fresh: bool,
        sums: &mut [Sums],
    ) {
        if a.rows == 0 || a.cols == 0 {
            return;
        }
        assert!(strips >= 1 && (strips - 1) * strip + a.cols <= b.len() && a.rows <= sums.len());
        assert!((a.rows - 1) * a.stride + a.cols <= a.data.len());
        let task = Task {
            a: a.data.as_ptr(),
            stride: a.stride,
            rows: a.rows,
            depth: a.cols,
            b: b.as_ptr(),
            next,
            strip,
            fresh,
        };
        // SAFETY: the slices hold what the tiles read and write, as was just checked.
        unsafe {
            match (wide(), strips) {
                (true, 1) => tiles::<ROWS, 1>(&task, 0, sums.as_mut_ptr()),
                (true, 2) => tiles::<ROWS, 2>(&task, 0, sums.as_mut_ptr()),
                (true, _) => tiles::<ROWS, 3>(&task, 0, sums.as_mut_ptr()),
                (false, _) => (0..strips).for_each(|s| tiles::<NARROW_ROWS, 1>(&task, s, sums.as_mut_ptr())),
            }
        }
    }
}

struct Task {
    a: *const f32,
    stride: usize,
    rows: usize,
    depth: usize,
    b: *const Vector,
    next: *const Vector,
    strip: usize,
    fresh: bool,
}

/// All rows by `S` strips from `first` on, in tiles of `R` rows.
#[inline(always)]
unsafe fn tiles<const R: usize, const S: usize>(t: &Task, first: usize, sums: *mut Sums) {
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while row + R <= t.rows {
            tile::<R, S>(t, row, first, sums);
            row += R;
        }
        match t.rows - row {
            1 => tile::<1, S>(t, row, first, sums),
            2 => tile::<2, S>(t, row, first, sums),
            3 => tile::<3, S>(t, row, first, sums),
            4 => tile::<4, S>(t, row, first, sums),
            5 => tile::<5, S>(t, row, first, sums),
            6 => tile::<6, S>(t, row, first, sums),
            7 => tile::<7, S>(t, row, first, sums),
            _ => {}
        }
    }
}

/// Asks for a line of memory, whether it exists or not: weights come from far away, and each only once.
#[inline(always)]
fn prefetch(address: *const Vector) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: no access: an address that cannot be read is passed over.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[inline(always)]
unsafe fn tile<const R: usize, const S: usize>(t: &Task, row: usize, first: usize, sums: *mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        let a = t.a.add(row * t.stride);
        let b = t.b.add(first * t.strip).cast::<[f32; LANES]>();
        let sums = sums.add(row).cast::<[f32; LANES]>().add(first);
        let mut acc = [[[0.0f32; LANES]; S]; R];
        if !t.fresh {
            for r in 0..R {
                for s in 0..S {
                    acc[r][s] = *sums.add(r * STRIPS + s);
                }
            }
        }
        // Each tile asks for its share of the next strips, spread over its steps.
        let mut due = row / R;
        for k in 0..t.depth {
            if k == due {
                for s in 0..S {
                    prefetch(t.next.wrapping_add((first + s) * t.strip + k));
                }
                due += t.rows.div_ceil(R);
            }
            let mut columns = [[0.0f32; LANES]; S];
            for s in 0..S {
                columns[s] = *b.add(s * t.strip + k);
            }
            for r in 0..R {
                let x = *a.add(r * t.stride + k);
                for s in 0..S {
                    for lane in 0..LANES {
                        acc[r][s][lane] = x.mul_add(columns[s][lane], acc[r][s][lane]);
                    }
                }
            }
        }
        for r in 0..R {
            for s in 0..S {
                *sums.add(r * STRIPS + s) = acc[r][s];
            }
        }
    }
}
