//! Causal attention with grouped keys and values over packed segments, each with an optional shared prefix.
//!
//! A query attends to the rows of its segment's prefix and to its own segment up to itself (Vaswani et al.,
//! arXiv:1706.03762 eq. 1; grouped heads: Ainslie et al., arXiv:2305.13245). The completions of a group name their
//! prompt as prefix, so the prompt's keys and values are computed once. The same kernel serves training (keys are rows
//! of the packed batch) and decoding (keys are rows of the cache): a query's result has the same bits in both.
//!
//! Scores of a few queries are all that is ever held; the backward pass computes them again. `row.rs` attends with one
//! query, `tile.rs` with successive ones at once.

mod backward;
mod gpu;
mod row;
mod tile;

pub use backward::attention_backward;
pub(crate) use gpu::{QUERY_WORDS, query_words};
pub(crate) use row::{Keys, attend_row};

use super::gpu::{self as device, Pointer};
use super::storage::{Shared, mat, unset, update};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// The head counts: `num_heads` query heads share `num_kv_heads` key and value heads of `head_dim` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Columns of the queries.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Columns of packed queries, keys and values.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The column ranges of queries, keys and values; `qkv [N, (H + 2K) E]`.
///
/// # Errors
/// Fails where there are not as many columns.
pub fn parts(qkv: &Tensor, heads: Heads) -> Result<[Tensor; 3]> {
    let (q, kv) = (heads.q_width(), heads.kv_width());
    Ok([qkv.narrow(1, 0, q)?, qkv.narrow(1, q, kv)?, qkv.narrow(1, q + kv, kv)?])
}

/// The key rows that one query sees, in order: the prefix, then its own segment up to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    pub prefix: Range<usize>,
    pub own: Range<usize>,
}

impl Context {
    /// Number of keys.
    #[must_use]
    pub fn num_keys(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    #[cfg(test)]
    fn rows(&self) -> impl Iterator<Item = usize> + use<> {
        self.prefix.clone().chain(self.own.clone())
    }
}

/// A run of rows of the packed batch that attend causally to each other and fully to `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    pub prefix: Range<usize>,
}

/// The contexts of the queries of a batch, and what a GPU is told about them.
#[derive(Debug, Default)]
pub struct Contexts {
    rows: Vec<Context>,
    plan: gpu::Plan,
}

impl Contexts {
    /// Contexts of single queries, for which [`query_words`] are on the GPU already, and stay there.
    pub(crate) fn given(rows: Vec<Context>, at: Pointer) -> Self {
        Self { rows, plan: gpu::Plan::given(at) }
    }

    /// What each query sees.
    #[must_use]
    pub fn rows(&self) -> &[Context] {
        &self.rows
    }
}

impl From<Vec<Context>> for Contexts {
    fn from(rows: Vec<Context>) -> Self {
        Self { rows, plan: gpu::Plan::default() }
    }
}

/// The contexts of every row of a packed batch.
///
/// # Errors
/// Fails where the segments do not cover the rows `0..num_rows` in order, or a prefix lies outside the batch.
pub fn contexts(segments: &[Segment], num_rows: usize) -> Result<Contexts> {
    let mut contexts = Vec::with_capacity(num_rows);
    for segment in segments {
        if segment.rows.start != contexts.len() || segment.prefix.end > num_rows {
            bail!("attention: segment {segment:?} after {} of {num_rows} rows", contexts.len());
        }
        contexts.extend(
            segment
                .rows
                .clone()
                .map(|row| Context { prefix: segment.prefix.clone(), own: segment.rows.start..row + 1 }),
        );
    }
    if contexts.len() != num_rows {
        bail!("attention: segments cover {} of {num_rows} rows", contexts.len());
    }
    Ok(contexts.into())
}

/// Attention of each query row over its context.
///
/// # Shapes
/// `q [N, H*E]`, `k, v [T, K*E]` (column ranges of wider matrices allowed), `contexts [N]` with rows below T
/// `-> [N, H*E]`
///
/// # Errors
/// Fails where shapes or contexts do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, contexts: &Contexts, heads: Heads) -> Result<Tensor> {
    check(q, k, v, &contexts.rows, heads)?;
    let y = unset(q.dim(0)?, heads.q_width(), q)?;
    if let Some(gpu) = device::of(q) {
        gpu::forward(&gpu, [q, k, v, &y], Pointer::NULL, (&contexts.rows, &contexts.plan), heads)?;
        return Ok(y);
    }
    let contexts = &contexts.rows;
    let (q_storage, q_layout) = q.storage_and_layout();
    let (k_storage, k_layout) = k.storage_and_layout();
    let (v_storage, v_layout) = v.storage_and_layout();
    let (q, k, v) = (mat(&q_storage, q_layout)?, mat(&k_storage, k_layout)?, mat(&v_storage, v_layout)?);
    let width = heads.q_width();
    let tasks = runs(contexts, if tile::fits(heads) { tile::QUERIES } else { 1 });
    update(&y, |y| {
        let out = Shared::new(y.data);
        tasks.par_iter().for_each_init(Scratch::default, |scratch, rows| {
            // SAFETY: runs do not overlap, and `y` has a row of `width` values for each query.
            let y = unsafe { out.slice(rows.start * width, rows.len() * width) };
            if rows.len() >= SMALLEST_TILE {
                tile::attend_tile(q.rows(rows.clone()), k, v, &contexts[rows.start], heads, &mut scratch.tile, y);
            } else {
                for (row, y) in rows.clone().zip(y.chunks_exact_mut(width)) {
                    let Context { prefix, own } = &contexts[row];
                    let part = |rows: &Range<usize>| Keys { k: k.rows(rows.clone()), v: v.rows(rows.clone()) };
                    attend_row(q.row(row), [part(prefix), part(own)], heads, &mut scratch.scores, y);
                }
            }
        });
        Ok(())
    })?;
    Ok(y)
}

/// With fewer queries the lanes of a tile are too empty to pay.
const SMALLEST_TILE: usize = 4;

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    tile: tile::Scratch,
}

/// Cuts the queries into runs of at most `longest`, each query of a run seeing one key more than the one before.
fn runs(contexts: &[Context], longest: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (row, at) in contexts.iter().enumerate() {
        let follows = |run: &&mut Range<usize>| {
            let before = &contexts[row - 1];
            run.len() < longest
                && at.prefix == before.prefix
                && at.own.start == before.own.start
                && at.own.end == before.own.end + 1
        };
        match runs.last_mut().filter(follows) {
            Some(run) => run.end = row + 1,
            None => runs.push(row..row + 1),
        }
    }
    runs
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, contexts: &[Context], heads: Heads) -> Result<()> {
    let (rows, keys) = (q.dim(0)?, k.dim(0)?);
    let fits = heads.num_kv_heads > 0
        && heads.num_heads.is_multiple_of(heads.num_kv_heads)
        && q.dims() == [rows, heads.q_width()]
        && k.dims() == [keys, heads.kv_width()]
        && v.dims() == k.dims()
        && contexts.len() == rows
        && contexts.iter().all(|c| c.prefix.end.max(c.own.end) <= keys && c.num_keys() > 0);
    if !fits {
        let shapes = [q.dims(), k.dims(), v.dims()];
        bail!("attention: queries, keys and values {shapes:?}, {} contexts, {heads:?}", contexts.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_close, assert_level_invariant, assert_thread_invariant, on_each_device, random, reference_gradients,
        variable,
    };

    /// The naive reference, differentiable by candle: full scores with a mask made of the contexts.
    fn reference(qkv: &Tensor, contexts: &[Context], heads: Heads) -> Result<Tensor> {
        let (n, e, shared) = (qkv.dim(0)?, heads.head_dim, heads.num_heads / heads.num_kv_heads);
        let mut mask = vec![f32::NEG_INFINITY; n * n];
        for (row, context) in contexts.iter().enumerate() {
            context.rows().for_each(|key| mask[row * n + key] = 0.0);
        }
        let mask = Tensor::from_vec(mask, (n, n), qkv.device())?.to_dtype(qkv.dtype())?;
        let mut outs = Vec::new();
        for head in 0..heads.num_heads {
            let q = qkv.narrow(1, head * e, e)?;
            let k = qkv.narrow(1, heads.q_width() + head / shared * e, e)?;
            let v = qkv.narrow(1, heads.q_width() + heads.kv_width() + head / shared * e, e)?;
            let scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * f64::from(heads.scale()))?;
            let p = candle_nn::ops::softmax(&(scores + &mask)?, 1)?;
            outs.push(p.matmul(&v.contiguous()?)?);
        }
        Tensor::cat(&outs, 1)
    }

    /// A prompt shared by completions of different lengths, an unrelated sequence, a single token.
    fn segments() -> Vec<Segment> {
        [(0..5, 0..0), (5..6, 0..5), (6..13, 0..5), (13..30, 0..0), (30..31, 0..0), (31..33, 30..31)]
            .map(|(rows, prefix)| Segment { rows, prefix })
            .to_vec()
    }

    /// Longer than what kernels take at a time.
    fn long_segments() -> Vec<Segment> {
        [(0..37, 0..0), (37..60, 0..37), (60..66, 0..37), (66..68, 0..0), (68..101, 66..68)]
            .map(|(rows, prefix)| Segment { rows, prefix })
            .to_vec()
    }

    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (num_heads, num_kv_heads, head_dim, segments) in [
                (1, 1, 1, segments()),
                (7, 1, 6, segments()),
                (4, 2, 16, segments()),
                (6, 3, 10, long_segments()),
                (2, 1, 72, long_segments()),
            ] {
                let heads = Heads { num_heads, num_kv_heads, head_dim };
                let n = segments.last().map_or(0, |last| last.rows.end);
                let contexts = contexts(&segments, n)?;
                let (qkv, g) = (random(&[n, heads.qkv_width()], 1), random(&[n, heads.q_width()], 2));
                let var = variable(&qkv);
                let y = reference(&var, &contexts.rows, heads)?;
                let expected = reference_gradients(&y, &g, &[&var])?;
                let [q, k, v] = parts(&qkv, heads)?;
                assert_close(&attention(&q, &k, &v, &contexts, heads)?, &y, 1e-5);
                assert_close(&attention_backward(&g, &qkv, &segments, &contexts, heads)?, &expected[0], 1e-5);
            }
            Ok(())
        })
    }

    /// A query over a cache whose rows lie elsewhere has the bits of the same query in the packed batch.
    #[test]
    fn cached_equals_packed() -> Result<()> {
        on_each_device(|| {
            let heads = Heads { num_heads: 6, num_kv_heads: 2, head_dim: 12 };
            let qkv = random(&[33, heads.qkv_width()], 1);
            let [q, k, v] = parts(&qkv, heads)?;
            let packed = attention(&q, &k, &v, &contexts(&segments(), 33)?, heads)?.to_vec2::<f32>()?;
            // Row 12 is the last of the segment 6..13 with prefix 0..5; the cache holds the two in the other order.
            let order: Vec<u32> = (6..13).chain(0..5).collect();
            let cache = |x: &Tensor| super::super::embedding::gather_rows(&x.contiguous()?, &order);
            let context = Context { prefix: 7..12, own: 0..7 };
            let (q, context) = (q.narrow(0, 12, 1)?, Contexts::from(vec![context]));
            let one = attention(&q, &cache(&k)?, &cache(&v)?, &context, heads)?.to_vec2::<f32>()?;
            assert!(one[0].iter().zip(&packed[12]).all(|(a, b)| a.to_bits() == b.to_bits()));
            Ok(())
        })
    }

    /// A query has the same bits in a tile of successive queries as alone, with and without a prefix, for heads of one,
    /// two, three and five chunks of lanes.
    #[test]
    fn a_tile_equals_single_queries() -> Result<()> {
        for head_dim in [16, 32, 48, 80] {
            let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim };
            let contexts = contexts(&long_segments(), 101)?;
            let qkv = random(&[101, heads.qkv_width()], 1);
            let [q, k, v] = parts(&qkv, heads)?;
            let tiled = attention(&q, &k, &v, &contexts, heads)?.to_vec2::<f32>()?;
            for (row, context) in contexts.rows.iter().enumerate() {
                let context = Contexts::from(vec![context.clone()]);
                let one = attention(&q.narrow(0, row, 1)?, &k, &v, &context, heads)?;
                let one = one.to_vec2::<f32>()?;
                assert!(one[0].iter().zip(&tiled[row]).all(|(a, b)| a.to_bits() == b.to_bits()), "{head_dim}: {row}");
            }
        }
        Ok(())
    }

    /// Alone and in tiles, for heads of less than a vector, of one, of two and of more.
    #[test]
    fn vector_instructions_do_not_change_the_bits() {
        assert_level_invariant(|| {
            let of_size = |head_dim| {
                let heads = Heads { num_heads: 14, num_kv_heads: 2, head_dim };
                let qkv = random(&[33, heads.qkv_width()], 1);
                let [q, k, v] = parts(&qkv, heads).expect("fits");
                attention(&q, &k, &v, &contexts(&segments(), 33).expect("fits"), heads).expect("fits")
            };
            [8, 16, 32, 48, 64].map(of_size).to_vec()
        });
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        assert_thread_invariant(|| {
            let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 8 };
            let (qkv, g) = (random(&[33, heads.qkv_width()], 1), random(&[33, heads.q_width()], 2));
            let [q, k, v] = parts(&qkv, heads).expect("fits");
            let contexts = contexts(&segments(), 33).expect("fits");
            let y = attention(&q, &k, &v, &contexts, heads).expect("fits");
            vec![y, attention_backward(&g, &qkv, &segments(), &contexts, heads).expect("fits")]
        });
    }

    #[test]
    fn contexts_outside_the_keys_are_errors() {
        let heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 2 };
        let x = random(&[3, 2], 1);
        let outside = Context { prefix: 0..0, own: 0..4 };
        assert!(attention(&x.narrow(0, 0, 1).expect("fits"), &x, &x, &vec![outside].into(), heads).is_err());
        assert!(contexts(&[Segment { rows: 1..3, prefix: 0..0 }], 3).is_err());
    }
}
