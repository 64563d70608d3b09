//! A weight laid out for many products with few rows each, as decoding does them.
//!
//! The general product lays its operands out anew in each call, which costs as much as the product itself where the
//! rows are few. Here the weight is laid out once. The sums keep the order of [`matmul`](super::matmul), so a row has
//! the same bits on both ways.

use super::tile::{STRIPS, Sums, multiply};
use super::{DEPTH, LANES, Mat, MatMut};
use crate::ops::simd::kernel;
use crate::ops::storage::Shared;
use candle_core::{Result, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Values of successive columns; aligned, so that none spans two lines of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Vector(pub [f32; LANES]);

/// The transpose of a weight `[N, K]` in strips of [`LANES`] columns: all rows of the first strip, then the next. The
/// last one is filled up with copies of its first column.
#[derive(Debug)]
pub(crate) struct Packed {
    strips: Vec<Vector>,
    depth: usize,
    cols: usize,
}

impl Packed {
    /// Lays out weights of one width, side by side as columns.
    pub fn new(weights: &[Mat<'_>]) -> Self {
        let depth = weights.first().map_or(0, |w| w.cols);
        let columns: Vec<&[f32]> = weights.iter().flat_map(|w| (0..w.rows).map(|row| w.row(row))).collect();
        let mut strips = vec![Vector::default(); columns.len().div_ceil(LANES) * depth];
        strips.par_chunks_mut(depth.max(1)).zip(columns.par_chunks(LANES)).for_each(|(strip, columns)| {
            pack(std::array::from_fn(|lane| *columns.get(lane).unwrap_or(&columns[0])), strip);
        });
        Self { strips, depth, cols: columns.len() }
    }
}

/// Rows that pass by the strips together: their sums stay in the first-level cache.
const ROWS: usize = 64;
/// Steps of K between two visits to the sums: as much of [`STRIPS`] strips stays in the first-level cache.
const STEP: usize = 256;
/// Multiply-adds below which threads cost more than they save.
const SMALL: usize = 1 << 18;

/// `dst = x w` on at most `threads` threads of the current pool.
pub(crate) fn matmul_packed(dst: &mut MatMut<'_>, x: Mat<'_>, w: &Packed, threads: usize) -> Result<()> {
    if (dst.rows, dst.cols, x.cols) != (x.rows, w.cols, w.depth) {
        bail!("matmul: [{}, {}] by [{}, {}] into [{}, {}]", x.rows, x.cols, w.depth, w.cols, dst.rows, dst.cols);
    }
    let threads = if x.rows * x.cols * w.cols < SMALL { 1 } else { threads.max(1) };
    let (stride, out) = (dst.stride, Shared::new(dst.data));
    let all = w.cols.div_ceil(LANES);
    let task = |part: usize| {
        // SAFETY: each task writes the columns of its own strips.
        let write = |row: usize, cols: Range<usize>| unsafe { out.slice(row * stride + cols.start, cols.len()) };
        columns(x, w, part * all / threads..(part + 1) * all / threads, write);
    };
    if threads == 1 {
        task(0);
    } else {
        (0..threads).into_par_iter().for_each(task);
    }
    Ok(())
}

/// The columns of some strips; `dst` gives the place of some columns of a row.
fn columns<'d>(x: Mat<'_>, w: &Packed, strips: Range<usize>, dst: impl Fn(usize, Range<usize>) -> &'d mut [f32]) {
    let mut sums = [Sums::default(); ROWS];
    for rows in cut(0..x.rows, ROWS) {
        for strips in cut(strips.clone(), STRIPS) {
            let cols = strips.start * LANES..w.cols.min(strips.end * LANES);
            let x = x.rows(rows.clone());
            for block in cut(0..w.depth, DEPTH) {
                for k in cut(block.clone(), STEP) {
                    let start = strips.start * w.depth + k.start;
                    let next = if k.end < w.depth { start + k.len() } else { strips.end * w.depth };
                    let (b, next) = (&w.strips[start..], w.strips.as_ptr().wrapping_add(next));
                    let x = x.columns(k.start, k.len());
                    multiply(x, b, next, w.depth, strips.len(), k.start == block.start, &mut sums);
                }
                for (row, sums) in rows.clone().zip(&sums) {
                    place(sums, dst(row, cols.clone()), block.start > 0);
                }
            }
        }
    }
}

kernel! {
    /// `dst (+)= sums`
    fn place(sums: &Sums, dst: &mut [f32], add: bool) {
        let (vectors, rest) = dst.as_chunks_mut::<LANES>();
        let edge = sums.get(vectors.len()).map_or(&[][..], |sums| &sums.0);
        if add {
            for (dst, sums) in vectors.iter_mut().zip(sums) {
                for lane in 0..LANES {
                    dst[lane] += sums.0[lane];
                }
            }
            rest.iter_mut().zip(edge).for_each(|(dst, sum)| *dst += sum);
        } else {
            vectors.iter_mut().zip(sums).for_each(|(dst, sums)| *dst = sums.0);
            rest.iter_mut().zip(edge).for_each(|(dst, sum)| *dst = *sum);
        }
    }
}

/// Successive pieces of `range`, `size` long but for the last.
fn cut(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
}

kernel! {
    /// `strip[k][lane] = columns[lane][k]`
    fn pack(columns: [&[f32]; LANES], strip: &mut [Vector]) {
        let (squares, rest) = strip.as_chunks_mut::<LANES>();
        let done = squares.len() * LANES;
        for (i, square) in squares.iter_mut().enumerate() {
            transpose(columns, i * LANES, square);
        }
        for (k, vector) in (done..).zip(rest) {
            for lane in 0..LANES {
                vector.0[lane] = columns[lane][k];
            }
        }
    }
}

/// `square[k][lane] = columns[lane][first + k]`
#[inline(always)]
fn transpose(columns: [&[f32]; LANES], first: usize, square: &mut [Vector; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if crate::ops::simd::wide() {
        // SAFETY: the machine has AVX-512.
        return unsafe { transpose_wide(columns, first, square) };
    }
    for k in 0..LANES {
        for lane in 0..LANES {
            square[k].0[lane] = columns[lane][first + k];
        }
    }
}

/// [`transpose`] by shuffles, which compilers do not find by themselves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose_wide(columns: [&[f32]; LANES], first: usize, square: &mut [Vector; LANES]) {
    use std::arch::x86_64::{
        __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
        _mm512_store_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut rows = [_mm512_setzero_ps(); LANES];
    for lane in 0..LANES {
        // SAFETY: the slice has a vector's length.
        rows[lane] = unsafe { _mm512_loadu_ps(columns[lane][first..first + LANES].as_ptr()) };
    }
    // quads[4 g + j]: in quarter q of the vector, value 4 q + j of rows 4 g to 4 g + 3.
    let mut quads = [_mm512_setzero_ps(); LANES];
    for g in 0..4 {
        let [a, b, c, d]: [__m512; 4] = [rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]];
        let (ab, cd) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpacklo_ps(c, d)));
        quads[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        quads[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let (ab, cd) = (_mm512_castps_pd(_mm512_unpackhi_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
        quads[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        quads[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    }
    let mut done = [_mm512_setzero_ps(); LANES];
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        let (even, other) = (_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<EVEN>(c, d));
        let (odd, another) = (_mm512_shuffle_f32x4::<ODD>(a, b), _mm512_shuffle_f32x4::<ODD>(c, d));
        done[j] = _mm512_shuffle_f32x4::<EVEN>(even, other);
        done[4 + j] = _mm512_shuffle_f32x4::<EVEN>(odd, another);
        done[8 + j] = _mm512_shuffle_f32x4::<ODD>(even, other);
        done[12 + j] = _mm512_shuffle_f32x4::<ODD>(odd, another);
    }
    for k in 0..LANES {
        // SAFETY: a vector's length, aligned.
        unsafe { _mm512_store_ps(square[k].0.as_mut_ptr(), done[k]) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Form, matmul};
    use super::*;
    use crate::ops::testing::{assert_level_invariant, random};
    use candle_core::{Device, Tensor};

    /// A packed weight gives the bits of the general product: few and many rows, ragged strips, sums deeper than a
    /// block, several weights side by side, on one thread and on two.
    #[test]
    fn has_the_bits_of_the_general_product() -> Result<()> {
        for (rows, depth, outs) in [
            (1, 1, vec![1]),
            (1, 24, vec![3]),
            (5, 20, vec![48, 16, 16]),
            (8, 128, vec![128]),
            (13, 64, vec![50, 7]),
            (64, 130, vec![129]),
            (65, 896, vec![16]),
            (9, 1100, vec![64, 64, 300]),
            (70, 2000, vec![200]),
        ] {
            let x = random(&[rows, depth], 1).flatten_all()?.to_vec1::<f32>()?;
            let x = Mat::new(&x, rows, depth);
            let weights = outs.iter().zip(2..).map(|(out, seed)| random(&[*out, depth], seed).flatten_all()?.to_vec1());
            let weights = weights.collect::<Result<Vec<Vec<f32>>>>()?;
            let weights: Vec<Mat<'_>> = weights.iter().zip(&outs).map(|(w, out)| Mat::new(w, *out, depth)).collect();
            let packed = Packed::new(&weights);
            let mut expected = vec![0.0; rows * packed.cols];
            let mut all = MatMut::new(&mut expected, rows, packed.cols);
            let mut at = 0;
            for w in &weights {
                matmul(&mut all.block(0..rows, at..at + w.rows), x, *w, Form::Nt, false)?;
                at += w.rows;
            }
            for threads in [1, 2] {
                let mut got = vec![f32::NAN; expected.len()];
                matmul_packed(&mut MatMut::new(&mut got, rows, packed.cols), x, &packed, threads)?;
                let same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{rows} x {depth} -> {outs:?} on {threads} threads");
            }
        }
        Ok(())
    }

    #[test]
    fn vector_instructions_do_not_change_the_bits() {
        assert_level_invariant(|| {
            let of_size = |(rows, depth, cols)| {
                let flat = |shape: &[usize], seed| random(shape, seed).flatten_all().and_then(|x| x.to_vec1::<f32>());
                let (x, w) = (flat(&[rows, depth], 1).expect("f32"), flat(&[cols, depth], 2).expect("f32"));
                let packed = Packed::new(&[Mat::new(&w, cols, depth)]);
                let mut y = vec![f32::NAN; rows * cols];
                matmul_packed(&mut MatMut::new(&mut y, rows, cols), Mat::new(&x, rows, depth), &packed, 1)
                    .expect("fits");
                Tensor::from_vec(y, (rows, cols), &Device::Cpu).expect("fits")
            };
            [(1, 16, 1), (13, 40, 50), (29, 600, 130)].map(of_size).to_vec()
        });
    }
}
