//! The gradient of attention, by matrix products over blocks of queries.

use super::parts;
use super::{Contexts, Heads, Segment, gpu};
use crate::ops::embedding::zeros;
use crate::ops::gpu as device;
use crate::ops::math::{dot, exp_sum_in_place, max};
use crate::ops::matmul::{Form, matmul_in_task};
use crate::ops::simd::kernel;
use crate::ops::storage::{Mat, MatMut, Shared, mat, update};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Queries of a block: its scores stay in the cache.
const BLOCK: usize = 64;

/// The gradient of [`attention`](super::attention()) within one packed batch, with respect to packed queries, keys and
/// values.
///
/// With P the softmax weights and dP = g vᵀ: dv = Pᵀ g, dS = P (dP - rowsum(P dP)), dq = dS k scale, dk = dSᵀ q scale.
///
/// # Shapes
/// `g [N, H*E]` (gradient of the result), `qkv [N, (H + 2K) E]` (columns: queries, keys, values) `-> [N, (H + 2K) E]`
///
/// `contexts` are those of the segments.
///
/// # Errors
/// Fails where shapes or segments do not fit.
pub fn attention_backward(
    g: &Tensor,
    qkv: &Tensor,
    segments: &[Segment],
    contexts: &Contexts,
    heads: Heads,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let covered = segments.last().map_or(0, |last| last.rows.end);
    if width != heads.qkv_width() || g.dims() != [n, heads.q_width()] || covered != n || contexts.rows.len() != n {
        bail!("attention: gradient {:?} of [{n}, {width}] with {heads:?} and {covered} rows", g.dims());
    }
    let dqkv = zeros(n, width, qkv)?;
    if let Some(gpu) = device::of(qkv) {
        let ([q, k, v], [dq, dk, dv]) = (parts(qkv, heads)?, parts(&dqkv, heads)?);
        let contexts = (&*contexts.rows, &contexts.plan);
        gpu::backward(&gpu, g, [&q, &k, &v], [&dq, &dk, &dv], contexts, heads)?;
        return Ok(dqkv);
    }
    let (g_storage, g_layout) = g.storage_and_layout();
    let (storage, layout) = qkv.storage_and_layout();
    let (g, qkv) = (mat(&g_storage, g_layout)?, mat(&storage, layout)?);
    let groups = blocks(segments);
    let tasks: Vec<_> =
        groups.iter().flat_map(|group| (0..heads.num_kv_heads).map(move |head| (group, head))).collect();
    update(&dqkv, |dqkv| {
        let out = Shared::new(dqkv.data);
        tasks.par_iter().try_for_each_init(Scratch::default, |scratch, (blocks, kv_head)| {
            // The group's first segment holds the prefix of the others.
            let span = blocks.first().map_or(0, |b| b.rows.start)..blocks.last().map_or(0, |b| b.rows.end);
            Task { g, qkv, heads, kv_head: *kv_head, blocks, span, out }.run(scratch)
        })
    })?;
    Ok(dqkv)
}

/// Successive queries with one prefix.
struct Block {
    rows: Range<usize>,
    prefix: Range<usize>,
    parts: Vec<Part>,
}

/// Those of them that belong to one segment, which starts at `start`.
struct Part {
    rows: Range<usize>,
    start: usize,
}

/// Rows of a block against rows of keys; `column` is that of the first key in the block's matrices.
struct Piece {
    rows: Range<usize>,
    keys: Range<usize>,
    column: usize,
}

impl Block {
    /// The keys that the queries see.
    fn pieces(&self) -> impl Iterator<Item = Piece> {
        let (rows, keys) = (self.rows.clone(), self.prefix.clone());
        let prefix = (!keys.is_empty()).then_some(Piece { rows, keys, column: 0 });
        let own = self.parts.iter().map(|part| {
            let (rows, keys) = (part.rows.clone(), part.start..part.rows.end);
            Piece { rows, keys, column: self.prefix.len() }
        });
        prefix.into_iter().chain(own)
    }

    /// Columns of the block's matrices.
    fn width(&self) -> usize {
        self.pieces().map(|piece| piece.column + piece.keys.len()).max().unwrap_or(0)
    }

    /// The rows of a piece within the block.
    fn inner(&self, piece: &Piece) -> Range<usize> {
        piece.rows.start - self.rows.start..piece.rows.end - self.rows.start
    }
}

/// The blocks of each group of segments. Segments with one prefix add to the same keys: they are one task for each head
/// of keys.
fn blocks(segments: &[Segment]) -> Vec<Vec<Block>> {
    let mut groups: BTreeMap<usize, Vec<Block>> = BTreeMap::new();
    for segment in segments {
        let prefix = &segment.prefix;
        let group = groups.entry(if prefix.is_empty() { segment.rows.start } else { prefix.start }).or_default();
        for start in segment.rows.clone().step_by(BLOCK) {
            let rows = start..segment.rows.end.min(start + BLOCK);
            let part = Part { rows: rows.clone(), start: segment.rows.start };
            let joins = |last: &&mut Block| {
                let is_next = last.rows.end == rows.start && last.rows.len() + rows.len() <= BLOCK;
                is_next && last.prefix == *prefix && !prefix.is_empty()
            };
            if let Some(last) = group.last_mut().filter(joins) {
                last.rows.end = rows.end;
                last.parts.push(part);
            } else {
                group.push(Block { rows, prefix: prefix.clone(), parts: vec![part] });
            }
        }
    }
    groups.into_values().collect()
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
    /// Gradients of one head over the rows of the group, `[rows, E]` each.
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// A head of keys and values with the heads of queries that share it, over one group of segments.
struct Task<'a> {
    g: Mat<'a>,
    qkv: Mat<'a>,
    heads: Heads,
    kv_head: usize,
    blocks: &'a [Block],
    /// From the first row of the group to the last.
    span: Range<usize>,
    out: Shared,
}

impl Task<'_> {
    fn run(&self, scratch: &mut Scratch) -> Result<()> {
        let (e, shared) = (self.heads.head_dim, self.heads.num_heads / self.heads.num_kv_heads);
        let k_column = self.heads.q_width() + self.kv_head * e;
        let v_column = k_column + self.heads.kv_width();
        let zero = |buffer: &mut Vec<f32>| {
            buffer.clear();
            buffer.resize(self.span.len() * e, 0.0);
        };
        zero(&mut scratch.dk);
        zero(&mut scratch.dv);
        for head in self.kv_head * shared..(self.kv_head + 1) * shared {
            zero(&mut scratch.dq);
            for block in self.blocks {
                self.add(block, [head * e, k_column, v_column], scratch)?;
            }
            self.store(&scratch.dq, head * e);
        }
        self.store(&scratch.dk, k_column);
        self.store(&scratch.dv, v_column);
        Ok(())
    }

    /// Adds what the queries of a block give to the gradients of one head; `columns` are those of its queries, keys and
    /// values.
    fn add(&self, block: &Block, columns: [usize; 3], scratch: &mut Scratch) -> Result<()> {
        let e = self.heads.head_dim;
        let [q, k, v] = columns.map(|column| self.qkv.columns(column, e));
        let g = self.g.columns(columns[0], e);
        let (n, width) = (block.rows.len(), block.width());
        let Scratch { p, ds, dq, dk, dv } = scratch;
        p.resize(n * width, 0.0);
        ds.resize(n * width, 0.0);
        for piece in block.pieces() {
            let product = |dst: &mut [f32], a: Mat<'_>, b: Mat<'_>| {
                let mut dst = MatMut::new(dst, n, width);
                let columns = piece.column..piece.column + piece.keys.len();
                let mut dst = dst.block(block.inner(&piece), columns);
                matmul_in_task(&mut dst, a.rows(piece.rows.clone()), b.rows(piece.keys.clone()), Form::Nt, false)
            };
            product(p, q, k)?;
            product(ds, g, v)?;
        }
        for part in &block.parts {
            for row in part.rows.clone() {
                let at = (row - block.rows.start) * width;
                let seen = block.prefix.len() + row + 1 - part.start;
                softmax_gradient(&mut p[at..at + width], &mut ds[at..at + width], seen, self.heads.scale());
            }
        }
        let (p, ds) = (Mat::new(p, n, width), Mat::new(ds, n, width));
        for piece in block.pieces() {
            let inner = |rows: &Range<usize>| rows.start - self.span.start..rows.end - self.span.start;
            let add = |dst: &mut [f32], rows: &Range<usize>, x: Mat<'_>, y: Mat<'_>, form| {
                let mut dst = MatMut::new(dst, self.span.len(), e);
                let x = x.rows(block.inner(&piece)).columns(piece.column, piece.keys.len());
                matmul_in_task(&mut dst.block(inner(rows), 0..e), x, y, form, true)
            };
            add(dq, &piece.rows, ds, k.rows(piece.keys.clone()), Form::Nn)?;
            add(dk, &piece.keys, ds, q.rows(piece.rows.clone()), Form::Tn)?;
            add(dv, &piece.keys, p, g.rows(piece.rows.clone()), Form::Tn)?;
        }
        Ok(())
    }

    /// Copies the gradient of one head to its columns.
    fn store(&self, gradient: &[f32], column: usize) {
        let e = self.heads.head_dim;
        for row in self.blocks.iter().flat_map(|block| block.rows.clone()) {
            // SAFETY: the rows belong to the task's group and the columns to its heads, and to no other task.
            let to = unsafe { self.out.slice(row * self.qkv.cols + column, e) };
            to.copy_from_slice(&gradient[(row - self.span.start) * e..][..e]);
        }
    }
}

kernel! {
    /// Scores and `dP` of a query that sees the first `seen` keys of its row -> softmax weights and `dS * scale`.
    fn softmax_gradient(p: &mut [f32], ds: &mut [f32], seen: usize, scale: f32) {
        p[seen..].fill(0.0);
        ds[seen..].fill(0.0);
        let (p, ds) = (&mut p[..seen], &mut ds[..seen]);
        for p in p.iter_mut() {
            *p *= scale;
        }
        let shift = max(p);
        let sum = exp_sum_in_place(p, shift);
        for p in p.iter_mut() {
            *p /= sum;
        }
        let inner = dot(p, ds);
        for (p, ds) in p.iter().zip(ds) {
            *ds = p * (*ds - inner) * scale;
        }
    }
}
