//! Each operation as a reader of its formula would write it, in candle's differentiable operations.

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW as CandleAdamW, Optimizer, ParamsAdamW};
use candlewick::ops::attention::{Context, Heads};

/// `x Wᵀ`; `x [N, in]`, `w [out, in]`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

/// `x / sqrt(mean(x^2) + eps) * w`; `x [N, D]`, `w [D]`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(w)
}

/// `x cos + rotate_half(x) sin`; `x [N, H*E]`, `inv_freq [E/2]`, `positions [N]`.
pub fn rope(x: &Tensor, inv_freq: &[f32], positions: &[u32]) -> Result<Tensor> {
    let ((n, width), half) = (x.dims2()?, inv_freq.len());
    let angles: Vec<f32> = positions.iter().flat_map(|p| inv_freq.iter().map(move |f| *p as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (n, 1, half), x.device())?;
    let angles = Tensor::cat(&[&angles, &angles], 2)?; // [N, 1, E]
    let x = x.reshape((n, width / (2 * half), 2 * half))?;
    let turned = Tensor::cat(&[&x.narrow(2, half, half)?.neg()?, &x.narrow(2, 0, half)?], 2)?;
    (x.broadcast_mul(&angles.cos()?)? + turned.broadcast_mul(&angles.sin()?)?)?.reshape((n, width))
}

/// 0 where a row sees a key of the packed batch and minus infinity elsewhere, `[N, N]`.
pub fn mask(contexts: &[Context]) -> Result<Tensor> {
    let n = contexts.len();
    let mut mask = vec![f32::NEG_INFINITY; n * n];
    for (row, context) in contexts.iter().enumerate() {
        context.prefix.clone().chain(context.own.clone()).for_each(|key| mask[row * n + key] = 0.0);
    }
    Tensor::from_vec(mask, (n, n), &candle_core::Device::Cpu)
}

/// Full scores of the packed batch; `qkv [N, (H + 2K) E]`, `mask [N, N] -> [N, H*E]`.
pub fn attention(qkv: &Tensor, mask: &Tensor, heads: Heads) -> Result<Tensor> {
    let (n, e, shared) = (qkv.dim(0)?, heads.head_dim, heads.num_heads / heads.num_kv_heads);
    let split = |start, num_heads| {
        let part = qkv.narrow(1, start, num_heads * e)?.reshape((n, num_heads, e))?;
        part.transpose(0, 1)?.contiguous() // [heads, N, E]
    };
    let repeat = |x: Tensor| {
        let x = x.unsqueeze(1)?.broadcast_as((heads.num_kv_heads, shared, n, e))?;
        x.contiguous()?.reshape((heads.num_heads, n, e))
    };
    let q = split(0, heads.num_heads)?;
    let k = repeat(split(heads.q_width(), heads.num_kv_heads)?)?;
    let v = repeat(split(heads.q_width() + heads.kv_width(), heads.num_kv_heads)?)?;
    let scores = (q.matmul(&k.t()?)? / (e as f64).sqrt())?.broadcast_add(mask)?;
    let y = candle_nn::ops::softmax(&scores, 2)?.matmul(&v)?;
    y.transpose(0, 1)?.contiguous()?.reshape((n, heads.q_width()))
}

/// `silu(gate) * up`; `gate_up [N, 2F]`.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    gate_up.narrow(1, 0, width)?.silu()? * gate_up.narrow(1, width, width)?
}

/// Rows of `table [V, D]`.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(ids, table.device())?, 0)
}

/// Log-probs of `targets [R]` after the hidden `rows [R]`; all logits at once.
pub fn logprobs(hidden: &Tensor, weight: &Tensor, rows: &[u32], targets: &[u32]) -> Result<Tensor> {
    let logits = linear(&embedding(hidden, rows)?, weight)?;
    let targets = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
    candle_nn::ops::log_softmax(&logits, 1)?.gather(&targets, 1)?.squeeze(1)
}

/// candle's optimizer on one variable, with a given gradient.
pub struct AdamW {
    var: Var,
    optimizer: CandleAdamW,
    grads: GradStore,
}

impl AdamW {
    pub fn new(var: Var) -> Result<Self> {
        let optimizer = CandleAdamW::new(vec![var.clone()], ParamsAdamW { lr: 1e-6, ..ParamsAdamW::default() })?;
        let grads = var.sum_all()?.backward()?;
        Ok(Self { var, optimizer, grads })
    }

    pub fn step(&mut self, grad: &Tensor) -> Result<()> {
        self.grads.insert(&self.var, grad.clone());
        self.optimizer.step(&self.grads)
    }
}
