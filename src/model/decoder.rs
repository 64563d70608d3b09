//! The decoder: one implementation for Llama, Mistral, Qwen2 and Qwen3, with its backward pass.
//!
//! A layer is `x + o(attention(rope(qkv(norm(x)))))`, then `x + down(silu(gate) * up)` of the normed sum (Touvron et
//! al., arXiv:2302.13971 section 2.2). Families differ in biases, in the norm of queries and keys, in the size of a
//! head and in the rotary frequencies: all of it data. Batches are packed: `[N]` tokens of any number of sequences,
//! without padding.
//!
//! Two ways through the same code: [`Decoder::forward`] over a packed batch, which can keep what the backward pass
//! needs, and [`Decoder::forward_cached`], which reads and extends a key-value cache. A token's hidden state has the
//! same bits on both.

use super::adapter::Adapter;
use super::params::Params;
use super::{ModelConfig, ModelError, Task};
use crate::ops::Weight;
use crate::ops::attention::{Context, Contexts, Heads, Segment, attention, attention_backward, contexts, parts};
use crate::ops::elementwise::{add_into, silu_mul, silu_mul_backward};
use crate::ops::embedding::{RowNumbers, embedding, embedding_backward, embedding_of, scatter_rows, zeros};
use crate::ops::gpu;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::{rms_norm, rms_norm_backward, rms_norm_into};
use crate::ops::rope::RopeTable;
use crate::ops::storage::{copy, unset};
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// Tokens of any number of sequences, one after the other.
#[derive(Debug, Clone, Default)]
pub struct PackedTokens {
    pub ids: Vec<u32>,          // [N]
    pub positions: Vec<u32>,    // [N], the position of each token in its own sequence
    pub segments: Vec<Segment>, // cover 0..N in order
}

impl PackedTokens {
    /// Appends tokens, the first at `position` of its sequence, as one segment that sees the rows `prefix`, too; returns
    /// their rows.
    pub fn push(&mut self, ids: &[u32], position: usize, prefix: Range<usize>) -> Range<usize> {
        let rows = self.ids.len()..self.ids.len() + ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend((position..position + ids.len()).map(|p| p as u32));
        if !ids.is_empty() {
            self.segments.push(Segment { rows: rows.clone(), prefix });
        }
        rows
    }
}

/// Keys and values of past tokens, a row a token; which rows belong to which sequence is the caller's business.
#[derive(Debug)]
pub struct KvCache {
    /// `[2 L rows, K*E]`: the keys of the first layer, its values, the keys of the second and so on.
    pub(super) values: Tensor,
    pub(super) rows: usize,
}

impl KvCache {
    /// Keys and values of a layer, `[rows, K*E]` each.
    fn layer(&self, index: usize) -> Result<[Tensor; 2]> {
        let part = |part: usize| self.values.narrow(0, (2 * index + part) * self.rows, self.rows);
        Ok([part(0)?, part(1)?])
    }

    /// Bytes of a cache with `rows` rows.
    #[must_use]
    pub fn bytes(config: &ModelConfig, dtype: DType, rows: usize) -> usize {
        let row = 2 * dtype.size_in_bytes() * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
        row.saturating_mul(rows)
    }
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Weight,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) qk_norm: Option<(Weight, Weight)>,
    pub(super) o: Linear,
    pub(super) post_norm: Weight,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What a layer keeps for its backward pass; the normed inputs and the gated product are computed again.
#[derive(Debug)]
struct Activations {
    x: Tensor,               // [N, D] input of the layer
    raw_qkv: Option<Tensor>, // [N, (H + 2K) E] before the norm of queries and keys
    qkv: Tensor,             // [N, (H + 2K) E] as attention reads it
    attended: Tensor,        // [N, H*E]
    mid: Tensor,             // [N, D] after attention's residual sum
    gate_up: Tensor,         // [N, 2F]
}

#[derive(Debug)]
enum Kept {
    Input(Tensor),
    All(Box<Activations>),
}

/// What [`Decoder::forward`] keeps for [`Decoder::backward`].
#[derive(Debug)]
pub struct Recorder {
    layers: Vec<Kept>,
    last: Option<Tensor>, // [N, D] input of the final norm
    checkpointing: bool,
    /// Names the draws of the adapter's dropout; none: nothing is left out.
    noise: Option<u64>,
}

impl Recorder {
    /// Nothing kept yet; with `checkpointing` only each layer's input will be, and the rest computed again
    /// (Chen et al., arXiv:1604.06174).
    #[must_use]
    pub fn new(checkpointing: bool) -> Self {
        Self { layers: Vec::new(), last: None, checkpointing, noise: None }
    }

    /// The same with dropout in the adapter, whose draws are named by `noise`.
    #[must_use]
    pub fn with_noise(self, noise: u64) -> Self {
        Self { noise: Some(noise), ..self }
    }
}

/// Which way tokens take through a layer.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// A batch that sees itself; `noise` names the draws of dropout.
    Packed { noise: Option<u64> },
    /// Attention finds keys and values in a cache.
    Cached { cache: &'a KvCache, rows: &'a RowNumbers<'a> },
}

/// A pretrained model without its head, which is kept beside it.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: ModelConfig,
    params: Params,
    adapter: Option<Adapter>,
    pub(super) heads: Heads,
    pub(super) inv_freq: Vec<f32>,
    pub(super) embed: Weight,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Weight,
    head: Weight,
}

impl Decoder {
    /// Wires the parameters together; the decoder shares their storage.
    ///
    /// # Errors
    /// Names a parameter that is missing.
    pub fn new(config: ModelConfig, params: Params) -> std::result::Result<Self, ModelError> {
        Self::wire(config, params, None)
    }

    fn wire(config: ModelConfig, params: Params, adapter: Option<Adapter>) -> std::result::Result<Self, ModelError> {
        let layers = (0..config.num_hidden_layers)
            .map(|index| layer(&config, &params, adapter.as_ref(), index))
            .collect::<std::result::Result<_, _>>()?;
        let embed = params.weight("model.embed_tokens.weight")?;
        let head = match config.task {
            Task::SequenceClassification => params.weight("score.weight")?,
            Task::CausalLm if config.tie_word_embeddings => embed.clone(),
            Task::CausalLm => params.weight("lm_head.weight")?,
        };
        let heads = Heads {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let inv_freq = config.rope_inv_freq();
        let norm = params.weight("model.norm.weight")?;
        Ok(Self { config, params, adapter, heads, inv_freq, embed, layers, norm, head })
    }

    /// The same weights with an adapter beside them.
    ///
    /// # Errors
    /// Never, for a decoder that could be made.
    pub fn with_adapter(self, adapter: Adapter) -> std::result::Result<Self, ModelError> {
        Self::wire(self.config, self.params, Some(adapter))
    }

    /// The model without its adapter; the weights are shared.
    ///
    /// # Errors
    /// Never, for a decoder that could be made.
    pub fn without_adapter(&self) -> std::result::Result<Self, ModelError> {
        Self::new(self.config.clone(), self.params.clone())
    }

    /// The same weights with zeroed gradient buffers of their own.
    ///
    /// # Errors
    /// Fails where a buffer cannot be allocated.
    pub fn with_own_gradients(&self) -> Result<Self> {
        let adapter = self.adapter.as_ref().map(Adapter::with_own_gradients).transpose()?;
        Self::wire(self.config.clone(), self.params.with_own_gradients()?, adapter).map_err(candle_core::Error::wrap)
    }

    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every parameter of the model, without those of an adapter.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters that training changes: those of the adapter where there is one.
    #[must_use]
    pub fn trained(&self) -> &Params {
        self.adapter.as_ref().map_or(&self.params, Adapter::params)
    }

    /// The output weight `[V, D]`, the embedding where the two are tied; of a reward model the score head `[1, D]`.
    #[must_use]
    pub fn head(&self) -> &Weight {
        &self.head
    }

    #[must_use]
    pub fn device(&self) -> &Device {
        self.embed.value().device()
    }

    /// The format that it computes in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.embed.value().dtype()
    }

    /// Whether several threads may run it at once: on a GPU, where work is queued in one order, they may not.
    #[must_use]
    pub fn runs_in_threads(&self) -> bool {
        gpu::of_device(self.device()).is_none()
    }

    /// A cache of `rows` rows.
    ///
    /// # Errors
    /// Fails where it cannot be allocated.
    pub fn new_cache(&self, rows: usize) -> Result<KvCache> {
        let shape = (2 * self.layers.len() * rows, self.heads.kv_width());
        Ok(KvCache { values: Tensor::zeros(shape, self.dtype(), self.device())?, rows })
    }

    /// Hidden states after the final norm.
    ///
    /// # Shapes
    /// tokens `[N] -> [N, D]`
    ///
    /// # Errors
    /// Fails for ids outside the vocabulary or segments that do not cover the tokens.
    pub fn forward(&self, tokens: &PackedTokens, mut recorder: Option<&mut Recorder>) -> Result<Tensor> {
        let contexts = contexts(&tokens.segments, tokens.ids.len())?;
        let rope = RopeTable::new(&self.inv_freq, &tokens.positions, self.device())?;
        let mut x = embedding(&self.embed, &tokens.ids)?;
        let way = Way::Packed { noise: recorder.as_ref().and_then(|recorder| recorder.noise) };
        for (index, layer) in self.layers.iter().enumerate() {
            let (y, activations) = self.run_layer(index, layer, x.clone(), &rope, &contexts, way)?;
            if let Some(recorder) = recorder.as_deref_mut() {
                let kept = if recorder.checkpointing { Kept::Input(x) } else { Kept::All(Box::new(activations)) };
                recorder.layers.push(kept);
            }
            x = y;
        }
        let hidden = rms_norm(&x, &self.norm, self.config.rms_norm_eps)?;
        if let Some(recorder) = recorder {
            recorder.last = Some(x);
        }
        Ok(hidden)
    }

    /// Hidden states after the final norm of new tokens of cached sequences; their keys and values are written to
    /// `rows` of the cache, and each token sees the cache rows of its context (its own row included).
    ///
    /// # Shapes
    /// `ids, positions, rows, contexts [N] -> [N, D]`
    ///
    /// # Errors
    /// Fails for ids outside the vocabulary or rows outside the cache.
    pub fn forward_cached(
        &self,
        ids: &[u32],
        positions: &[u32],
        cache: &mut KvCache,
        rows: &[u32],
        contexts: &[Context],
    ) -> Result<Tensor> {
        let rope = RopeTable::new(&self.inv_freq, positions, self.device())?;
        let (contexts, rows) = (Contexts::from(contexts.to_vec()), RowNumbers::new(rows));
        let x = self.run_cached(embedding(&self.embed, ids)?, &rope, (cache, &rows), &contexts)?;
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// All layers on `x [N, D]`, whose keys and values go to rows of the cache.
    fn run_cached(
        &self,
        mut x: Tensor,
        rope: &RopeTable,
        (cache, rows): (&KvCache, &RowNumbers<'_>),
        contexts: &Contexts,
    ) -> Result<Tensor> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.run_layer(index, layer, x, rope, contexts, Way::Cached { cache, rows })?.0;
        }
        Ok(x)
    }

    /// [`Decoder::forward_cached`] into `hidden [N, D]`, with everything that changes from token to token on the GPU.
    pub(super) fn decode_into(
        &self,
        ids: &RowNumbers<'_>,
        rope: &RopeTable,
        cache: (&KvCache, &RowNumbers<'_>),
        contexts: &Contexts,
        hidden: &Tensor,
    ) -> Result<()> {
        let x = self.run_cached(embedding_of(&self.embed, ids)?, rope, cache, contexts)?;
        rms_norm_into(&x, &self.norm, self.config.rms_norm_eps, hidden)
    }

    /// Adds the gradients of every trained parameter below the hidden states, given theirs; frees the saved
    /// activations layer by layer.
    ///
    /// # Shapes
    /// `d_hidden [N, D]`, the gradient of what [`Decoder::forward`] returned for the same tokens
    ///
    /// # Errors
    /// Fails where the recorder did not follow a forward pass over these tokens.
    pub fn backward(&self, mut recorder: Recorder, tokens: &PackedTokens, d_hidden: &Tensor) -> Result<()> {
        let Some(last) = recorder.last.take() else { candle_core::bail!("backward without a recorded forward pass") };
        let contexts = contexts(&tokens.segments, tokens.ids.len())?;
        let rope = RopeTable::new(&self.inv_freq, &tokens.positions, self.device())?;
        let g = zeros(last.dim(0)?, last.dim(1)?, &last)?;
        rms_norm_backward(d_hidden, &last, &self.norm, self.config.rms_norm_eps, &g)?;
        drop(last);
        let way = Way::Packed { noise: recorder.noise };
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let activations = match recorder.layers.pop() {
                Some(Kept::All(activations)) => *activations,
                Some(Kept::Input(x)) => self.run_layer(index, layer, x, &rope, &contexts, way)?.1,
                None => candle_core::bail!("backward without a recorded layer {index}"),
            };
            self.layer_backward(layer, activations, &rope, (&tokens.segments, &contexts), &g, recorder.noise)?;
        }
        embedding_backward(&g, &self.embed, &tokens.ids)
    }

    /// One layer on `x [N, D]`: its result and everything its backward pass may want.
    fn run_layer(
        &self,
        index: usize,
        layer: &Layer,
        x: Tensor,
        rope: &RopeTable,
        contexts: &Contexts,
        way: Way<'_>,
    ) -> Result<(Tensor, Activations)> {
        let noise = if let Way::Packed { noise } = way { noise } else { None };
        let (eps, heads) = (self.config.rms_norm_eps, self.heads);
        let n = x.dim(0)?;
        let h = rms_norm(&x, &layer.input_norm, eps)?;
        let mut qkv = unset(n, heads.qkv_width(), &x)?;
        let [q, k, v] = parts(&qkv, heads)?;
        layer.q.forward_into(&h, &q, noise)?;
        layer.k.forward_into(&h, &k, noise)?;
        layer.v.forward_into(&h, &v, noise)?;
        let raw_qkv = match &layer.qk_norm {
            None => None,
            Some((q_norm, k_norm)) => {
                let normed = unset(n, heads.qkv_width(), &x)?;
                let [nq, nk, nv] = parts(&normed, heads)?;
                rms_norm_into(&q, q_norm, eps, &nq)?;
                rms_norm_into(&k, k_norm, eps, &nk)?;
                copy(&nv, &v)?;
                Some(std::mem::replace(&mut qkv, normed))
            }
        };
        let [q, k, v] = parts(&qkv, heads)?;
        rope.rotate(&q, false)?;
        rope.rotate(&k, false)?;
        let attended = match way {
            Way::Packed { .. } => attention(&q, &k, &v, contexts, heads)?,
            Way::Cached { cache, rows } => {
                let [cached_k, cached_v] = cache.layer(index)?;
                scatter_rows(&cached_k, rows, &k)?;
                scatter_rows(&cached_v, rows, &v)?;
                attention(&q, &cached_k, &cached_v, contexts, heads)?
            }
        };
        let mid = unset(n, x.dim(1)?, &x)?;
        layer.o.forward_into(&attended, &mid, noise)?;
        add_into(&mid, &x)?;
        let h = rms_norm(&mid, &layer.post_norm, eps)?;
        let width = self.config.intermediate_size;
        let gate_up = unset(n, 2 * width, &x)?;
        layer.gate.forward_into(&h, &gate_up.narrow(1, 0, width)?, noise)?;
        layer.up.forward_into(&h, &gate_up.narrow(1, width, width)?, noise)?;
        let y = unset(n, x.dim(1)?, &x)?;
        layer.down.forward_into(&silu_mul(&gate_up)?, &y, noise)?;
        add_into(&y, &mid)?;
        Ok((y, Activations { x, raw_qkv, qkv, attended, mid, gate_up }))
    }

    /// Turns `g [N, D]`, the gradient of the layer's result, into that of its input, in place.
    fn layer_backward(
        &self,
        layer: &Layer,
        kept: Activations,
        rope: &RopeTable,
        (segments, contexts): (&[Segment], &Contexts),
        g: &Tensor,
        noise: Option<u64>,
    ) -> Result<()> {
        let (eps, heads) = (self.config.rms_norm_eps, self.heads);
        let (n, d) = g.dims2()?;
        let width = self.config.intermediate_size;
        let Activations { x, raw_qkv, qkv, attended, mid, gate_up } = kept;

        let d_gated = unset(n, width, g)?;
        layer.down.backward(g, &silu_mul(&gate_up)?, &d_gated, false, noise)?;
        let d_gate_up = silu_mul_backward(&d_gated, &gate_up)?;
        drop((d_gated, gate_up));
        let h = rms_norm(&mid, &layer.post_norm, eps)?;
        let dh = unset(n, d, g)?;
        layer.gate.backward(&d_gate_up.narrow(1, 0, width)?, &h, &dh, false, noise)?;
        layer.up.backward(&d_gate_up.narrow(1, width, width)?, &h, &dh, true, noise)?;
        drop(d_gate_up);
        rms_norm_backward(&dh, &mid, &layer.post_norm, eps, g)?;
        drop(mid);

        let d_attended = unset(n, heads.q_width(), g)?;
        layer.o.backward(g, &attended, &d_attended, false, noise)?;
        drop(attended);
        let mut d_qkv = attention_backward(&d_attended, &qkv, segments, contexts, heads)?;
        drop((d_attended, qkv));
        let [dq, dk, dv] = parts(&d_qkv, heads)?;
        rope.rotate(&dq, true)?;
        rope.rotate(&dk, true)?;
        if let (Some((q_norm, k_norm)), Some(raw)) = (&layer.qk_norm, &raw_qkv) {
            let d_raw = zeros(n, heads.qkv_width(), g)?;
            let [raw_q, raw_k, _] = parts(raw, heads)?;
            let [d_raw_q, d_raw_k, d_raw_v] = parts(&d_raw, heads)?;
            rms_norm_backward(&dq, &raw_q, q_norm, eps, &d_raw_q)?;
            rms_norm_backward(&dk, &raw_k, k_norm, eps, &d_raw_k)?;
            add_into(&d_raw_v, &dv)?;
            d_qkv = d_raw;
        }
        let [dq, dk, dv] = parts(&d_qkv, heads)?;
        let h = rms_norm(&x, &layer.input_norm, eps)?;
        layer.q.backward(&dq, &h, &dh, false, noise)?;
        layer.k.backward(&dk, &h, &dh, true, noise)?;
        layer.v.backward(&dv, &h, &dh, true, noise)?;
        rms_norm_backward(&dh, &x, &layer.input_norm, eps, g)
    }
}

fn layer(
    config: &ModelConfig,
    params: &Params,
    adapter: Option<&Adapter>,
    index: usize,
) -> std::result::Result<Layer, ModelError> {
    let weight = |name: &str| params.weight(&format!("model.layers.{index}.{name}.weight"));
    let linear = |name: &str, bias: bool| {
        let bias = bias.then(|| params.weight(&format!("model.layers.{index}.{name}.bias"))).transpose()?;
        let lora = adapter.and_then(|adapter| adapter.of(&format!("model.layers.{index}.{name}")));
        Ok::<_, ModelError>(Linear { weight: weight(name)?, bias, lora })
    };
    let qk_norm =
        config.qk_norm.then(|| Ok::<_, ModelError>((weight("self_attn.q_norm")?, weight("self_attn.k_norm")?)));
    Ok(Layer {
        input_norm: weight("input_layernorm")?,
        q: linear("self_attn.q_proj", config.qkv_bias)?,
        k: linear("self_attn.k_proj", config.qkv_bias)?,
        v: linear("self_attn.v_proj", config.qkv_bias)?,
        qk_norm: qk_norm.transpose()?,
        o: linear("self_attn.o_proj", config.out_bias)?,
        post_norm: weight("post_attention_layernorm")?,
        gate: linear("mlp.gate_proj", config.mlp_bias)?,
        up: linear("mlp.up_proj", config.mlp_bias)?,
        down: linear("mlp.down_proj", config.mlp_bias)?,
    })
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
