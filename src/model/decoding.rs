//! One new token for each of many sequences: the way of [`Decoder::forward_cached`], to the bit, with weights laid out
//! for few rows and without a tensor in between.
//!
//! With rows enough for every thread, each thread takes some of the sequences through the whole model and waits for
//! the others once a token. With fewer, the threads share each product.

use super::decoder::{Decoder, KvCache, Layer};
use crate::ops::Weight;
use crate::ops::attention::{Context, Heads, Keys, attend_row};
use crate::ops::elementwise::{add, gate_rows};
use crate::ops::embedding::gather_rows;
use crate::ops::head::TILE_BYTES;
use crate::ops::linear::{DecodingLinear, Linear};
use crate::ops::rms_norm::norm_row;
use crate::ops::rope::RopeTable;
use crate::ops::storage::{Mat, MatMut, Shared, mat, update};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that make a thread worth its own way through the model: with fewer it would mostly wait for the weights.
const ROWS_A_THREAD: usize = 16;

/// A decoder as decoding wants it.
#[derive(Debug)]
pub struct DecodingModel<'a> {
    decoder: &'a Decoder,
    layers: Vec<DecodingLayer>,
    norm: Vec<f32>,
    vocab_size: usize,
    head: DecodingLinear,
    /// Scratch of each thread.
    buffers: Vec<Buffers>,
}

/// The next token of each of some sequences.
#[derive(Debug, Clone, Copy)]
pub struct NewTokens<'a> {
    pub ids: &'a [u32],          // [N]
    pub positions: &'a [u32],    // [N], of each in its sequence
    pub rows: &'a [u32],         // [N], where its keys and values go in the cache
    pub contexts: &'a [Context], // [N], the rows of the cache that it sees, its own the last
}

#[derive(Debug)]
struct DecodingLayer {
    input_norm: Vec<f32>,
    qkv: DecodingLinear,
    qk_norm: Option<[Vec<f32>; 2]>,
    o: DecodingLinear,
    post_norm: Vec<f32>,
    gate_up: DecodingLinear,
    down: DecodingLinear,
}

impl DecodingLayer {
    fn new(layer: &Layer, pack: bool) -> Result<Self> {
        let vector = |weight: &Weight| weight.value().to_vec1::<f32>();
        let qk_norm = layer.qk_norm.as_ref().map(|(q, k)| Ok::<_, candle_core::Error>([vector(q)?, vector(k)?]));
        Ok(Self {
            input_norm: vector(&layer.input_norm)?,
            qkv: DecodingLinear::new(&[&layer.q, &layer.k, &layer.v], pack)?,
            qk_norm: qk_norm.transpose()?,
            o: DecodingLinear::new(&[&layer.o], pack)?,
            post_norm: vector(&layer.post_norm)?,
            gate_up: DecodingLinear::new(&[&layer.gate, &layer.up], pack)?,
            down: DecodingLinear::new(&[&layer.down], pack)?,
        })
    }
}

/// Matrices of a thread, a row a sequence.
#[derive(Debug, Default)]
struct Buffers {
    h: Vec<f32>,        // [n, D]
    qkv: Vec<f32>,      // [n, (H + 2K) E]
    attended: Vec<f32>, // [n, H*E]
    gate_up: Vec<f32>,  // [n, 2F]
    gated: Vec<f32>,    // [n, F]
    scores: Vec<f32>,   // [keys]
    raw: Vec<f32>,      // [H*E], a row of queries or keys before their norm
}

impl<'a> DecodingModel<'a> {
    /// With `pack` the weights are copied in the order in which they are read; without, they are read where they are,
    /// which takes longer and no memory.
    ///
    /// # Errors
    /// Fails for weights that are not f32 on the CPU.
    pub fn new(decoder: &'a Decoder, pack: bool) -> Result<Self> {
        Ok(Self {
            layers: decoder.layers.iter().map(|layer| DecodingLayer::new(layer, pack)).collect::<Result<_>>()?,
            norm: decoder.norm.value().to_vec1()?,
            vocab_size: decoder.head().value().dim(0)?,
            head: DecodingLinear::new(&[&Linear::new(decoder.head().clone(), None)], pack)?,
            buffers: Vec::new(),
            decoder,
        })
    }

    /// Hidden states after the final norm; writes the tokens' keys and values to the cache.
    ///
    /// # Shapes
    /// tokens `[N] -> [N, D]`
    ///
    /// # Errors
    /// Fails for ids outside the vocabulary, rows outside the cache, a token that does not see its own row last, or one
    /// that sees another's.
    pub fn forward(&mut self, tokens: NewTokens<'_>, cache: &mut KvCache) -> Result<Tensor> {
        check(tokens, cache)?;
        let (n, d) = (tokens.ids.len(), self.decoder.config.hidden_size);
        let mut x = gather_rows(self.decoder.embed.value(), tokens.ids)?.flatten_all()?.to_vec1::<f32>()?;
        let rope = RopeTable::new(&self.decoder.inv_freq, tokens.positions, self.decoder.device())?;
        let (parts, threads) = share(n);
        let mut buffers = std::mem::take(&mut self.buffers);
        buffers.resize_with(parts, Buffers::default);
        update(&cache.values, |values| {
            let step =
                Step { model: self, tokens, rope: &rope, cache: Shared::new(values.data), rows: cache.rows, threads };
            let size = n.div_ceil(parts);
            let parts = x.par_chunks_mut(size * d).zip(&mut buffers).enumerate();
            parts.try_for_each(|(part, (x, buffers))| step.run(part * size, x, buffers))
        })?;
        self.buffers = buffers;
        let mut hidden = vec![0.0; n * d];
        norm_row(&x, &self.norm, self.decoder.config.rms_norm_eps, &mut hidden);
        Tensor::from_vec(hidden, (n, d), self.decoder.device())
    }

    /// Runs `f(row, logits)` on the logits of every row of `hidden` in parallel; the logits may be used as scratch.
    ///
    /// # Shapes
    /// `hidden [N, D]`, logits `[V]`
    ///
    /// # Errors
    /// Fails where the shape does not fit.
    pub fn map_logits<R: Send>(&self, hidden: &Tensor, f: impl Fn(usize, &mut [f32]) -> R + Sync) -> Result<Vec<R>> {
        let (storage, layout) = hidden.storage_and_layout();
        let hidden = mat(&storage, layout)?.data;
        let (d, vocab) = (self.decoder.config.hidden_size, self.vocab_size);
        let tile = (TILE_BYTES / (4 * vocab)).max(1);
        let mut results = Vec::with_capacity(hidden.len() / d);
        for (tile_index, hidden) in hidden.chunks(tile * d).enumerate() {
            let n = hidden.len() / d;
            let (parts, threads) = share(n);
            let size = n.div_ceil(parts);
            let part = |(part, hidden): (usize, &[f32])| {
                let n = hidden.len() / d;
                let mut z = vec![0.0; n * vocab];
                self.head.forward(Mat::new(hidden, n, d), &mut MatMut::new(&mut z, n, vocab), threads)?;
                let first = tile_index * tile + part * size;
                Ok(z.par_chunks_mut(vocab).enumerate().map(|(row, z)| f(first + row, z)).collect::<Vec<R>>())
            };
            let found = hidden.par_chunks(size * d).enumerate().map(part).collect::<Result<Vec<_>>>()?;
            results.extend(found.into_iter().flatten());
        }
        Ok(results)
    }
}

/// Tokens write and read the cache side by side: a row that one token writes must not be seen by another.
pub(super) fn check(tokens: NewTokens<'_>, cache: &KvCache) -> Result<()> {
    let n = tokens.ids.len();
    let mut written: Vec<usize> = tokens.rows.iter().map(|row| *row as usize).collect();
    written.sort_unstable();
    let num_written = |rows: &Range<usize>| {
        let before = |end: usize| written.partition_point(|row| *row < end);
        before(rows.end).saturating_sub(before(rows.start))
    };
    let fits = [tokens.positions.len(), tokens.rows.len(), tokens.contexts.len()] == [n; 3]
        && written.last().is_none_or(|row| *row < cache.rows)
        && tokens.rows.iter().zip(tokens.contexts).all(|(row, at)| {
            let is_last = at.own.start < at.own.end && at.own.end == *row as usize + 1;
            is_last && at.prefix.end <= cache.rows && num_written(&at.own) == 1 && num_written(&at.prefix) == 0
        });
    if !fits {
        bail!("decoding: {n} tokens whose rows do not fit a cache of {} rows, or each other", cache.rows);
    }
    Ok(())
}

/// `(parts, threads of each)`: how the threads share `rows` rows.
fn share(rows: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    if rows >= ROWS_A_THREAD * threads { (threads, 1) } else { (1, threads) }
}

/// What all threads see of a step.
struct Step<'a> {
    model: &'a DecodingModel<'a>,
    tokens: NewTokens<'a>,
    rope: &'a RopeTable,
    cache: Shared,
    /// Rows of the cache in each layer.
    rows: usize,
    /// Threads that share each product.
    threads: usize,
}

impl Step<'_> {
    /// Takes the tokens from `first` on, whose embeddings are `x [n, D]`, through all layers.
    fn run(&self, first: usize, x: &mut [f32], buffers: &mut Buffers) -> Result<()> {
        let (config, threads) = (&self.model.decoder.config, self.threads);
        let (d, width, eps) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let (n, q_width) = (x.len() / d, self.heads().q_width());
        let Buffers { h, qkv, attended, gate_up, gated, scores, raw } = buffers;
        h.resize(n * d, 0.0);
        qkv.resize(n * self.heads().qkv_width(), 0.0);
        attended.resize(n * q_width, 0.0);
        gate_up.resize(n * 2 * width, 0.0);
        gated.resize(n * width, 0.0);
        for (index, layer) in self.model.layers.iter().enumerate() {
            norm_row(x, &layer.input_norm, eps, h);
            product(&layer.qkv, h, qkv, n, threads)?;
            let mut rows = qkv.chunks_exact_mut(self.heads().qkv_width()).enumerate();
            rows.try_for_each(|(i, qkv)| self.remember(index, layer, first + i, qkv, raw))?;
            let rows = qkv.par_chunks_exact(self.heads().qkv_width()).zip(attended.par_chunks_exact_mut(q_width));
            let attend = |scores: &mut Vec<f32>, (i, (qkv, y)): (usize, (&[f32], &mut [f32]))| {
                attend_row(&qkv[..q_width], self.keys(index, first + i), self.heads(), scores, y);
            };
            if threads == 1 {
                let rows = qkv.chunks_exact(self.heads().qkv_width()).zip(attended.chunks_exact_mut(q_width));
                rows.enumerate().for_each(|row| attend(scores, row));
            } else {
                rows.enumerate().for_each_init(Vec::new, attend);
            }
            product(&layer.o, attended, h, n, threads)?;
            add(x, h);
            norm_row(x, &layer.post_norm, eps, h);
            product(&layer.gate_up, h, gate_up, n, threads)?;
            gate_rows(Mat::new(gate_up, n, 2 * width), 0, width, gated);
            product(&layer.down, gated, h, n, threads)?;
            add(x, h);
        }
        Ok(())
    }

    fn heads(&self) -> Heads {
        self.model.decoder.heads
    }

    /// Finishes the queries and keys of a token in place, and writes its keys and values to the cache.
    fn remember(
        &self,
        index: usize,
        layer: &DecodingLayer,
        token: usize,
        qkv: &mut [f32],
        raw: &mut Vec<f32>,
    ) -> Result<()> {
        let (q, kv) = qkv.split_at_mut(self.heads().q_width());
        let (k, v) = kv.split_at_mut(self.heads().kv_width());
        if let Some([q_norm, k_norm]) = &layer.qk_norm {
            for (x, norm) in [(&mut *q, q_norm), (&mut *k, k_norm)] {
                raw.clear();
                raw.extend_from_slice(x);
                norm_row(raw, norm, self.model.decoder.config.rms_norm_eps, x);
            }
        }
        self.rope.rotate_one(token, q)?;
        self.rope.rotate_one(token, k)?;
        let row = self.tokens.rows[token] as usize;
        // SAFETY: the row is within the cache and belongs to this token alone.
        let row = |part: usize| unsafe { self.cache.slice(self.start(index, part, row), k.len()) };
        row(0).copy_from_slice(k);
        row(1).copy_from_slice(v);
        Ok(())
    }

    /// What a token sees.
    fn keys(&self, index: usize, token: usize) -> [Keys<'_>; 2] {
        let width = self.heads().kv_width();
        let matrix = |part: usize, rows: &Range<usize>| {
            // SAFETY: the rows are within the cache, and none of them is written by another token's thread.
            let data = unsafe { self.cache.read(self.start(index, part, rows.start), rows.len() * width) };
            Mat::new(data, rows.len(), width)
        };
        let Context { prefix, own } = &self.tokens.contexts[token];
        [prefix, own].map(|rows| Keys { k: matrix(0, rows), v: matrix(1, rows) })
    }

    /// Where a row of the keys (part 0) or the values (part 1) of a layer lies in the cache.
    fn start(&self, index: usize, part: usize, row: usize) -> usize {
        ((2 * index + part) * self.rows + row) * self.heads().kv_width()
    }
}

/// `y = w x` for `n` rows.
fn product(w: &DecodingLinear, x: &[f32], y: &mut [f32], n: usize, threads: usize) -> Result<()> {
    let cols = y.len() / n.max(1);
    w.forward(Mat::new(x, n, x.len() / n.max(1)), &mut MatMut::new(y, n, cols), threads)
}
