//! Attention of up to [`QUERIES`] successive queries at once, in the bits of one query alone.
//!
//! The keys are read once for all queries of a tile. Vector lanes stand for queries where scores are made and summed,
//! and for columns where values are mixed; every sum keeps the order of [`dot`](crate::ops::math), so a query gives the
//! same bits in a tile as by itself.

use super::{Context, Heads};
use crate::ops::math::{LANES, exp};
use crate::ops::simd::kernel;
use crate::ops::storage::Mat;

/// Queries of a tile.
pub(super) const QUERIES: usize = 16;
/// Keys that are scored together: their sums fit the registers.
const KEYS: usize = 4;
/// Queries whose values are mixed together.
const MIXED: usize = 8;

type Lanes = [f32; QUERIES];

/// Buffers of a task.
#[derive(Default)]
pub(super) struct Scratch {
    /// The queries of a head, a column a query, `[E]`.
    queries: Vec<Lanes>,
    /// Scores, then softmax weights before division, `[keys]`.
    weights: Vec<Lanes>,
}

/// Whether a tile computes what one query alone does: a dot product is cut into whole chunks of lanes.
pub(super) fn fits(heads: Heads) -> bool {
    heads.head_dim.is_multiple_of(LANES)
}

kernel! {
    /// Attention of the queries `q [n, H*E]` of one segment: `first` is the context of the first, and each of the
    /// others sees one key more. `y [n, H*E]`, n at most [`QUERIES`].
    pub(super) fn attend_tile(
        q: Mat<'_>,
        k: Mat<'_>,
        v: Mat<'_>,
        first: &Context,
        heads: Heads,
        scratch: &mut Scratch,
        y: &mut [f32],
    ) {
        let (e, shared, width) = (heads.head_dim, heads.num_heads / heads.num_kv_heads, heads.q_width());
        let own = first.own.start..first.own.end + q.rows - 1;
        scratch.queries.resize(e, [0.0; QUERIES]);
        scratch.weights.resize(first.prefix.len() + own.len(), [0.0; QUERIES]);
        let (queries, weights) = (&mut scratch.queries[..], &mut scratch.weights[..]);
        for head in 0..heads.num_heads {
            let column = head / shared * e;
            for row in 0..q.rows {
                let values = &q.row(row)[head * e..][..e];
                queries.iter_mut().zip(values).for_each(|(lanes, value)| lanes[row] = *value);
            }
            let (of_prefix, of_own) = weights.split_at_mut(first.prefix.len());
            score(queries, from(k, first.prefix.start), k.stride, column, heads.scale(), of_prefix);
            score(queries, from(k, own.start), k.stride, column, heads.scale(), of_own);
            let sums = softmax(weights, first.num_keys());
            let (of_prefix, of_own) = weights.split_at(first.prefix.len());
            let values = [(of_prefix, first.prefix.start), (of_own, own.start)];
            let y = Mixture { y, width, column: head * e, rows: q.rows, first_own: first.own.len() };
            if e.is_multiple_of(2 * LANES) {
                y.fill::<2>(values, v, column, &sums, e);
            } else {
                y.fill::<1>(values, v, column, &sums, e);
            }
        }
    }
}

/// The rows of `x` from `row` on; none where an empty prefix lies behind the last.
#[inline(always)]
fn from(x: Mat<'_>, row: usize) -> &[f32] {
    x.data.get(row * x.stride..).unwrap_or_default()
}

/// `weights[key] = (queries · k[key]) * scale` for every key of `weights`; the rows of `k` start at the first.
#[inline(always)]
fn score(queries: &[Lanes], k: &[f32], stride: usize, column: usize, scale: f32, weights: &mut [Lanes]) {
    let e = queries.len();
    let mut key = 0;
    while key + KEYS <= weights.len() {
        let rows: [&[f32]; KEYS] = std::array::from_fn(|i| &k[(key + i) * stride + column..][..e]);
        let sums = dots(queries, rows);
        for i in 0..KEYS {
            for lane in 0..QUERIES {
                weights[key + i][lane] = sums[i][lane] * scale;
            }
        }
        key += KEYS;
    }
    while key < weights.len() {
        let [sum] = dots(queries, [&k[key * stride + column..][..e]]);
        for lane in 0..QUERIES {
            weights[key][lane] = sum[lane] * scale;
        }
        key += 1;
    }
}

/// The dot products of all queries with N keys, each summed as [`dot`](crate::ops::math) sums: 16 partial sums, then
/// those that lie 8, 4, 2 and 1 apart.
#[inline(always)]
fn dots<const N: usize>(queries: &[Lanes], keys: [&[f32]; N]) -> [Lanes; N] {
    const HALF: usize = LANES / 2;
    let mut pairs = [[[0.0f32; QUERIES]; N]; HALF];
    for (lane, pair) in pairs.iter_mut().enumerate() {
        let (mut low, mut high) = ([[0.0f32; QUERIES]; N], [[0.0f32; QUERIES]; N]);
        for chunk in (0..queries.len()).step_by(LANES) {
            let (query, other) = (&queries[chunk + lane], &queries[chunk + lane + HALF]);
            for i in 0..N {
                let (key, other_key) = (keys[i][chunk + lane], keys[i][chunk + lane + HALF]);
                for j in 0..QUERIES {
                    low[i][j] = query[j].mul_add(key, low[i][j]);
                    high[i][j] = other[j].mul_add(other_key, high[i][j]);
                }
            }
        }
        *pair = add(low, high);
    }
    let mut width = HALF / 2;
    while width > 0 {
        for i in 0..width {
            pairs[i] = add(pairs[i], pairs[i + width]);
        }
        width /= 2;
    }
    pairs[0]
}

#[inline(always)]
fn add<const N: usize>(mut a: [Lanes; N], b: [Lanes; N]) -> [Lanes; N] {
    for i in 0..N {
        for j in 0..QUERIES {
            a[i][j] += b[i][j];
        }
    }
    a
}

/// Replaces scores by `exp(score - max)` and returns the sums, by query; query i sees `first + i` keys, and its weights
/// of later ones become 0.
#[inline(always)]
fn softmax(weights: &mut [Lanes], first: usize) -> Lanes {
    let mut shifts = [f32::NEG_INFINITY; QUERIES];
    for (key, scores) in weights.iter_mut().enumerate() {
        for query in 0..QUERIES {
            if key >= first + query {
                scores[query] = f32::NEG_INFINITY;
            }
            shifts[query] = if scores[query] > shifts[query] { scores[query] } else { shifts[query] };
        }
    }
    // One partial sum for each key modulo LANES, as in `exp_sum_in_place`.
    let mut sums = [[0.0f32; QUERIES]; LANES];
    for (key, scores) in weights.iter_mut().enumerate() {
        let sum = &mut sums[key % LANES];
        for query in 0..QUERIES {
            scores[query] = exp(scores[query] - shifts[query]);
            sum[query] += scores[query];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            [sums[i]] = add([sums[i]], [sums[i + width]]);
        }
        width /= 2;
    }
    sums[0]
}

/// Where the result of a head goes.
struct Mixture<'a> {
    y: &'a mut [f32],
    width: usize,
    /// First column of the head.
    column: usize,
    rows: usize,
    /// Own keys that the first query sees.
    first_own: usize,
}

impl Mixture<'_> {
    /// `y = (sum of weights[key] v[key]) / sums`, key by key from the prefix to the last own one.
    #[inline(always)]
    fn fill<const CHUNKS: usize>(
        self,
        [(of_prefix, prefix), (of_own, own)]: [(&[Lanes], usize); 2],
        v: Mat<'_>,
        column: usize,
        sums: &Lanes,
        e: usize,
    ) {
        for row in (0..self.rows).step_by(MIXED) {
            // The last of these queries sees this many own keys; the weights of the others are 0 there.
            let seen = (self.first_own + row + MIXED - 1).min(of_own.len());
            for start in (0..e).step_by(CHUNKS * LANES) {
                let mut mixed = [[[0.0f32; LANES]; CHUNKS]; MIXED];
                mix(of_prefix, row, from(v, prefix), v.stride, column + start, &mut mixed);
                mix(&of_own[..seen], row, from(v, own), v.stride, column + start, &mut mixed);
                for (i, mixed) in mixed.iter().enumerate().take(self.rows - row) {
                    let y = &mut self.y[(row + i) * self.width + self.column + start..][..CHUNKS * LANES];
                    for (y, mixed) in y.iter_mut().zip(mixed.as_flattened()) {
                        *y = mixed / sums[row + i];
                    }
                }
            }
        }
    }
}

/// Adds `weights[key][row..row + MIXED] * v[key]` to `mixed`, key by key.
#[inline(always)]
fn mix<const CHUNKS: usize>(
    weights: &[Lanes],
    row: usize,
    v: &[f32],
    stride: usize,
    column: usize,
    mixed: &mut [[[f32; LANES]; CHUNKS]; MIXED],
) {
    #[cfg(target_arch = "x86_64")]
    if crate::ops::simd::wide() {
        // SAFETY: the machine has AVX-512.
        return unsafe { mix_wide(weights, row, v, stride, column, mixed) };
    }
    let mut sums = *mixed;
    for (key, weights) in weights.iter().enumerate() {
        let (values, _) = v[key * stride + column..][..CHUNKS * LANES].as_chunks::<LANES>();
        let weights = &weights[row..row + MIXED];
        for i in 0..MIXED {
            for c in 0..CHUNKS {
                for lane in 0..LANES {
                    sums[i][c][lane] = weights[i].mul_add(values[c][lane], sums[i][c][lane]);
                }
            }
        }
    }
    *mixed = sums;
}

/// [`mix`] with the lanes where they belong: compilers put the queries there, and gather their values one by one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn mix_wide<const CHUNKS: usize>(
    weights: &[Lanes],
    row: usize,
    v: &[f32],
    stride: usize,
    column: usize,
    mixed: &mut [[[f32; LANES]; CHUNKS]; MIXED],
) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    let mut sums = [[_mm512_setzero_ps(); CHUNKS]; MIXED];
    for i in 0..MIXED {
        for c in 0..CHUNKS {
            // SAFETY: a vector's length.
            sums[i][c] = unsafe { _mm512_loadu_ps(mixed[i][c].as_ptr()) };
        }
    }
    for (key, weights) in weights.iter().enumerate() {
        let values = &v[key * stride + column..][..CHUNKS * LANES];
        let weights = &weights[row..row + MIXED];
        for c in 0..CHUNKS {
            // SAFETY: `values` has as many vectors.
            let value = unsafe { _mm512_loadu_ps(values.as_ptr().add(c * LANES)) };
            for i in 0..MIXED {
                sums[i][c] = _mm512_fmadd_ps(_mm512_set1_ps(weights[i]), value, sums[i][c]);
            }
        }
    }
    for i in 0..MIXED {
        for c in 0..CHUNKS {
            // SAFETY: a vector's length.
            unsafe { _mm512_storeu_ps(mixed[i][c].as_mut_ptr(), sums[i][c]) };
        }
    }
}
