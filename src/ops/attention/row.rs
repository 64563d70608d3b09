//! Attention of one query: what decoding does for each sequence, and training where a run of queries is short.

use super::Heads;
use crate::ops::math::{LANES, axpy, dot, exp_sum_in_place, max};
use crate::ops::simd::kernel;
use crate::ops::storage::Mat;

/// Keys and values of some tokens in a row, `[rows, K*E]` each.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub k: Mat<'a>,
    pub v: Mat<'a>,
}

kernel! {
    /// Attention of one query `q [H*E]` over the keys of its prefix, then its own; `scores` is scratch.
    pub(crate) fn attend_row(q: &[f32], keys: [Keys<'_>; 2], heads: Heads, scores: &mut Vec<f32>, y: &mut [f32]) {
        let (e, shared) = (heads.head_dim, heads.num_heads / heads.num_kv_heads);
        let [prefix, own] = keys;
        let num_keys = prefix.k.rows + own.k.rows;
        scores.resize(heads.num_heads * num_keys, 0.0);
        for (head, (scores, q)) in scores.chunks_exact_mut(num_keys).zip(q.chunks_exact(e)).enumerate() {
            let (of_prefix, of_own) = scores.split_at_mut(prefix.k.rows);
            score(q, prefix.k, head / shared * e, heads.scale(), of_prefix);
            score(q, own.k, head / shared * e, heads.scale(), of_own);
            let shift = max(scores);
            let sum = exp_sum_in_place(scores, shift);
            // The sum waits in the head's place of the result.
            y[head * e] = sum;
        }
        let groups = scores.chunks_exact(shared * num_keys).zip(y.chunks_exact_mut(shared * e));
        for (kv_head, (weights, y)) in groups.enumerate() {
            let mut mixture = Mixture { weights, num_keys, values: [prefix.v, own.v], column: kv_head * e, y, e };
            let mut head = 0;
            while head < shared {
                head += match shared - head {
                    _ if !e.is_multiple_of(2 * LANES) => mixture.mix_one(head),
                    4.. => mixture.mix::<4>(head),
                    2.. => mixture.mix::<2>(head),
                    _ => mixture.mix::<1>(head),
                };
            }
        }
    }
}

/// `scores[row] = (q · k[row]) * scale`, the head of `k` that starts at `column`.
#[inline(always)]
fn score(q: &[f32], k: Mat<'_>, column: usize, scale: f32, scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::ops::simd::wide() && q.len().is_multiple_of(LANES) {
        for (first, scores) in (0..).step_by(LANES).zip(scores.chunks_mut(LANES)) {
            // SAFETY: the machine has AVX-512.
            let dots = unsafe { dots_wide(q, k, first, scores.len(), column) };
            scores.iter_mut().zip(dots).for_each(|(score, dot)| *score = dot * scale);
        }
        return;
    }
    for (row, score) in scores.iter_mut().enumerate() {
        *score = dot(q, &k.data[row * k.stride + column..][..q.len()]) * scale;
    }
}

/// [`dot`] of `q` with `count` rows of `k`, to the bit: the lanes of all rows are summed together, by shuffles.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn dots_wide(q: &[f32], k: Mat<'_>, first: usize, count: usize, column: usize) -> [f32; LANES] {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_permutexvar_ps,
        _mm512_set_epi32, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
        _mm512_unpackhi_pd, _mm512_unpacklo_pd,
    };
    let mut sums = [_mm512_setzero_ps(); LANES];
    let last = first + count - 1;
    for row in 0..LANES {
        // Rows beyond the last repeat it.
        let key = &k.data[(first + row).min(last) * k.stride + column..][..q.len()];
        for chunk in (0..q.len()).step_by(LANES) {
            // SAFETY: both slices have a vector's length there.
            let (q, key) =
                unsafe { (_mm512_loadu_ps(q.as_ptr().add(chunk)), _mm512_loadu_ps(key.as_ptr().add(chunk))) };
            sums[row] = _mm512_fmadd_ps(q, key, sums[row]);
        }
    }
    // Lanes that lie 8, 4, 2 and 1 apart, as `dot` sums them; each round puts the sums of two vectors into one.
    for row in 0..8 {
        let (a, b) = (sums[row], sums[row + 8]);
        sums[row] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
    }
    for row in 0..4 {
        let (a, b) = (sums[row], sums[row + 4]);
        sums[row] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
    }
    for row in 0..2 {
        let (a, b) = (_mm512_castps_pd(sums[row]), _mm512_castps_pd(sums[row + 2]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        sums[row] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let (a, b) = (sums[0], sums[1]);
    let mixed = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b));
    // The rounds have left the rows in this order: 0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15.
    let order = _mm512_set_epi32(15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0);
    let mut dots = [0.0; LANES];
    // SAFETY: a vector's length.
    unsafe { _mm512_storeu_ps(dots.as_mut_ptr(), _mm512_permutexvar_ps(order, mixed)) };
    dots
}

/// The heads of queries that share a head of keys and values.
struct Mixture<'a> {
    weights: &'a [f32], // [shared, keys]
    num_keys: usize,
    values: [Mat<'a>; 2],
    /// First column of the head of values.
    column: usize,
    y: &'a mut [f32], // [shared, E]
    e: usize,
}

impl Mixture<'_> {
    /// `y[head] = (sum of weights[head][row] v[row]) / y[head][0]` for `H` heads from `head` on, row by row from the
    /// prefix to the last own one; returns H. Each value is read once for all of them, and no sum waits for another.
    #[inline(always)]
    fn mix<const H: usize>(&mut self, head: usize) -> usize {
        let mut sums = [0.0f32; H];
        for h in 0..H {
            sums[h] = self.y[(head + h) * self.e];
        }
        for start in (0..self.e).step_by(2 * LANES) {
            let mut mixed = [[[0.0f32; LANES]; 2]; H];
            let mut weights = &self.weights[head * self.num_keys..];
            for v in self.values {
                for row in 0..v.rows {
                    let (value, _) = v.data[row * v.stride + self.column + start..][..2 * LANES].as_chunks::<LANES>();
                    for h in 0..H {
                        let weight = weights[h * self.num_keys + row];
                        for c in 0..2 {
                            for lane in 0..LANES {
                                mixed[h][c][lane] = weight.mul_add(value[c][lane], mixed[h][c][lane]);
                            }
                        }
                    }
                }
                weights = &weights[v.rows..];
            }
            for h in 0..H {
                let (y, _) = self.y[(head + h) * self.e + start..][..2 * LANES].as_chunks_mut::<LANES>();
                for c in 0..2 {
                    for lane in 0..LANES {
                        y[c][lane] = mixed[h][c][lane] / sums[h];
                    }
                }
            }
        }
        H
    }

    /// [`Mixture::mix`] of one head of any width.
    #[inline(always)]
    fn mix_one(&mut self, head: usize) -> usize {
        let y = &mut self.y[head * self.e..][..self.e];
        let sum = y[0];
        y.fill(0.0);
        let mut weights = self.weights[head * self.num_keys..].iter();
        for v in self.values {
            for (row, weight) in (0..v.rows).zip(&mut weights) {
                axpy(*weight, &v.data[row * v.stride + self.column..][..self.e], y);
            }
        }
        for y in y.iter_mut() {
            *y /= sum;
        }
        1
    }
}
