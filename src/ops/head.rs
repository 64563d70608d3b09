//! From hidden states to log-probs of chosen tokens, in tiles: the logits of a batch are never held.
//!
//! With `z = h Wᵀ / temperature`: `l_y = z_y - logsumexp(z)` and `H = logsumexp(z) - sum z softmax(z)`, in nats.

use super::Weight;
use super::embedding::{gather_rows, scatter_add_rows};
use super::gpu::{self, Buffer, Gpu, Launch, Pointer, arg, kernel as typed};
use super::math::{LANES, exp, logsumexp_entropy};
use super::matmul::{Form, matmul_into};
use super::simd::kernel;
use super::storage::{unset, unset_as, update};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

/// The size of a tile of logits. Within it as many rows are taken as fit.
pub(crate) const TILE_BYTES: usize = 16 << 20;
/// Small vocabularies would give tiles of thousands of rows, which leave the cache.
const MAX_TILE_ROWS: usize = 512;

/// Which hidden rows predict which tokens; a row may stand more than once.
#[derive(Debug, Clone, Copy)]
pub struct Predictions<'a> {
    /// Rows of the hidden states, `[R]`.
    pub rows: &'a [u32],
    /// The token that each row is asked about, `[R]`.
    pub targets: &'a [u32],
    /// Divides the logits; 1 is the model's own distribution.
    pub temperature: f32,
}

/// Log-probs and entropies of each prediction, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenLogprobs {
    pub logprobs: Vec<f32>,  // [R]
    pub entropies: Vec<f32>, // [R]
}

impl Extend<(f32, f32)> for TokenLogprobs {
    fn extend<T: IntoIterator<Item = (f32, f32)>>(&mut self, values: T) {
        for (logprob, entropy) in values {
            self.logprobs.push(logprob);
            self.entropies.push(entropy);
        }
    }
}

/// The logits of each row of `hidden`, f32.
///
/// # Shapes
/// `hidden [R, D]`, `weight [V, D] -> [R, V]`
///
/// # Errors
/// Fails where the shapes do not fit.
pub fn logits(hidden: &Tensor, weight: &Weight) -> Result<Tensor> {
    let z = unset_as(hidden.dim(0)?, weight.value().dim(0)?, DType::F32, hidden.device())?;
    logits_into(&z, hidden, weight)?;
    Ok(z)
}

fn logits_into(z: &Tensor, hidden: &Tensor, weight: &Weight) -> Result<()> {
    matmul_into(z, hidden, weight.value(), Form::Nt, false)
}

kernel! {
    /// Divides a row of logits by `temperature` in place; returns its logsumexp and entropy, in nats.
    ///
    /// Both the sampler and the trainer go through here, so that their log-probs are equal to the bit.
    #[must_use]
    pub fn scale_row(z: &mut [f32], temperature: f32) -> (f32, f32) {
        for z in z.iter_mut() {
            *z /= temperature;
        }
        logsumexp_entropy(z)
    }
}

kernel! {
    /// Writes `exp(z - lse)`, the probabilities of some tokens of a row, to `out`, and returns their sum.
    pub(crate) fn row_probabilities(z: &[f32], lse: f32, out: &mut [f32]) -> f64 {
        let out = &mut out[..z.len()];
        for (p, z) in out.iter_mut().zip(z) {
            *p = exp(*z - lse);
        }
        let mut sums = [0.0f64; LANES];
        for block in out.chunks(LANES) {
            for (sum, p) in sums.iter_mut().zip(block) {
                *sum += f64::from(*p);
            }
        }
        sums.iter().sum()
    }
}

/// Runs `f(row, values)` on every row of `x` in parallel; `x` may be used as scratch.
///
/// # Errors
/// Fails for tensors that are not f32 on the CPU.
pub fn map_rows<R: Send>(x: &Tensor, f: impl Fn(usize, &mut [f32]) -> R + Sync) -> Result<Vec<R>> {
    update(x, |x| {
        let cols = x.cols;
        Ok(x.data.par_chunks_mut(cols.max(1)).enumerate().map(|(row, x)| f(row, x)).collect())
    })
}

/// Log-prob and entropy of every prediction.
///
/// # Shapes
/// `hidden [N, D]`, `weight [V, D]`, predictions `[R] -> [R]`
///
/// # Errors
/// Fails for a row or target outside its range.
pub fn token_logprobs(hidden: &Tensor, weight: &Weight, predictions: Predictions<'_>) -> Result<TokenLogprobs> {
    let mut result = TokenLogprobs::default();
    let buffer = tile_buffer(hidden, weight, predictions)?;
    let on_gpu = gpu::of(hidden).map(|gpu| OnGpu::new(gpu, predictions, None)).transpose()?;
    for (start, tile) in tiles(weight, predictions)? {
        let z = buffer.narrow(0, 0, tile.rows.len())?;
        logits_into(&z, &gather_rows(hidden, tile.rows)?, weight)?;
        if let Some(on_gpu) = &on_gpu {
            on_gpu.score(&z, start)?;
        } else {
            result.extend(map_rows(&z, |row, z| {
                let (lse, entropy) = scale_row(z, tile.temperature);
                (z[tile.targets[row] as usize] - lse, entropy)
            })?);
        }
    }
    on_gpu.map_or(Ok(result), |on_gpu| on_gpu.found())
}

/// Gradients of a loss with respect to each prediction's log-prob and entropy.
#[derive(Debug, Clone, Copy)]
pub struct LogprobGrads<'a> {
    pub logprobs: &'a [f32],          // [R]
    pub entropies: Option<&'a [f32]>, // [R]
}

/// Adds the gradients of [`token_logprobs`] to the weight's gradient and to `d_hidden`. The logits are computed (again),
/// and with them what [`token_logprobs`] gives: it is returned, to the bit.
///
/// `dl_y/dz_j = 1[j = y] - p_j`; `dH/dz_j = -p_j (log p_j + H)`.
///
/// # Shapes
/// `hidden [N, D]`, `weight [V, D]`, predictions and gradients `[R]`, `d_hidden [N, D]`
///
/// # Errors
/// Fails for a row or target outside its range.
pub fn token_logprobs_backward(
    grads: LogprobGrads<'_>,
    hidden: &Tensor,
    weight: &Weight,
    predictions: Predictions<'_>,
    d_hidden: &Tensor,
) -> Result<TokenLogprobs> {
    let mut found = TokenLogprobs::default();
    let buffer = tile_buffer(hidden, weight, predictions)?;
    let on_gpu = gpu::of(hidden).map(|gpu| OnGpu::new(gpu, predictions, Some(grads))).transpose()?;
    for (start, tile) in tiles(weight, predictions)? {
        let h = gather_rows(hidden, tile.rows)?;
        let mut z = buffer.narrow(0, 0, tile.rows.len())?;
        logits_into(&z, &h, weight)?;
        if let Some(on_gpu) = &on_gpu {
            z = on_gpu.gradient(&z, start, hidden)?;
        } else {
            found.extend(map_rows(&z, |i, z| {
                let grad_h = grads.entropies.map_or(0.0, |g| g[start + i]);
                logits_gradient(z, tile.targets[i] as usize, tile.temperature, grads.logprobs[start + i], grad_h)
            })?);
        }
        let dh = unset(h.dim(0)?, h.dim(1)?, &h)?;
        matmul_into(&dh, &z, weight.value(), Form::Nn, false)?;
        scatter_add_rows(d_hidden, tile.rows, &dh)?;
        if let Some(grad) = weight.grad() {
            matmul_into(grad, &z, &h, Form::Tn, true)?;
        }
    }
    on_gpu.map_or(Ok(found), |on_gpu| on_gpu.found())
}

/// Replaces a row of undivided logits by the gradient with respect to them; returns the target's log-prob and the
/// entropy.
fn logits_gradient(z: &mut [f32], target: usize, temperature: f32, grad_l: f32, grad_h: f32) -> (f32, f32) {
    let (lse, entropy) = scale_row(z, temperature);
    let logprob = z[target] - lse;
    spread_gradient(z, lse, entropy, temperature, grad_l, grad_h);
    z[target] += grad_l / temperature;
    (logprob, entropy)
}

kernel! {
    /// The part of the gradient that every token of the vocabulary gets.
    fn spread_gradient(z: &mut [f32], lse: f32, entropy: f32, temperature: f32, grad_l: f32, grad_h: f32) {
        for z in z.iter_mut() {
            let log_p = *z - lse;
            let p = exp(log_p);
            // A token that cannot be drawn has log p = -infinity; its share of the entropy is 0.
            let of_entropy = if p > 0.0 || p.is_nan() { grad_h * (log_p + entropy) } else { 0.0 };
            *z = -p * (grad_l + of_entropy) / temperature;
        }
    }
}

/// Targets, gradients and results of all predictions, on a GPU.
struct OnGpu {
    gpu: Gpu,
    count: usize,
    temperature: f32,
    targets: Buffer,
    grads: [Option<Buffer>; 2],
    logprobs: Buffer,
    entropies: Buffer,
}

impl OnGpu {
    fn new(gpu: Gpu, all: Predictions<'_>, grads: Option<LogprobGrads<'_>>) -> Result<Self> {
        let count = all.targets.len();
        let of_entropies = grads.and_then(|grads| grads.entropies);
        let grads = [grads.map(|grads| grads.logprobs), of_entropies];
        let upload = |grads: Option<&[f32]>| grads.map(|grads| gpu.upload(grads)).transpose();
        Ok(Self {
            count,
            temperature: all.temperature,
            targets: gpu.upload(all.targets)?,
            grads: [upload(grads[0])?, upload(grads[1])?],
            logprobs: gpu.buffer::<f32>(count)?,
            entropies: gpu.buffer::<f32>(count)?,
            gpu,
        })
    }

    /// Scores the predictions from `start`, whose logits are `z [rows, V]`.
    fn score(&self, z: &Tensor, start: usize) -> Result<()> {
        let [targets, logprobs, entropies] = [&self.targets, &self.logprobs, &self.entropies].map(|b| b.at(start, 4));
        let view = self.gpu.view(z)?;
        let args = [arg(&view.matrix), arg(&targets), arg(&self.temperature), arg(&logprobs), arg(&entropies)];
        self.gpu.launch("token_logprobs", Launch::wide(view.rows()), &args)
    }

    /// [`OnGpu::score`], and the gradient with respect to the logits, in the type of `like`.
    fn gradient(&self, z: &Tensor, start: usize, like: &Tensor) -> Result<Tensor> {
        let dz = unset(z.dim(0)?, z.dim(1)?, like)?;
        let [targets, logprobs, entropies] = [&self.targets, &self.logprobs, &self.entropies].map(|b| b.at(start, 4));
        let [of_logprobs, of_entropies] =
            [&self.grads[0], &self.grads[1]].map(|grads| grads.as_ref().map_or(Pointer::NULL, |b| b.at(start, 4)));
        let (view, out) = (self.gpu.view(z)?, self.gpu.view(&dz)?);
        let args = [
            arg(&view.matrix),
            arg(&targets),
            arg(&self.temperature),
            arg(&of_logprobs),
            arg(&of_entropies),
            arg(&out.matrix),
            arg(&logprobs),
            arg(&entropies),
        ];
        self.gpu.launch(&typed("logits_gradient", like.dtype())?, Launch::wide(view.rows()), &args)?;
        Ok(dz)
    }

    fn found(&self) -> Result<TokenLogprobs> {
        Ok(TokenLogprobs {
            logprobs: self.gpu.download(&self.logprobs, self.count)?,
            entropies: self.gpu.download(&self.entropies, self.count)?,
        })
    }
}

fn tile_rows(vocab: usize, on_gpu: bool) -> usize {
    if on_gpu {
        // The gradient of the head is read and written once a tile.
        return 2 * gpu::BLOCK_ROWS;
    }
    (TILE_BYTES / (4 * vocab.max(1))).clamp(1, MAX_TILE_ROWS)
}

/// One buffer for the logits of all tiles: a buffer for each, of two sizes, would leave both with the allocator.
fn tile_buffer(hidden: &Tensor, weight: &Weight, all: Predictions<'_>) -> Result<Tensor> {
    let vocab = weight.value().dim(0)?;
    let size = tile_rows(vocab, gpu::of(hidden).is_some());
    unset_as(all.rows.len().min(size), vocab, DType::F32, hidden.device())
}

/// The predictions in tiles, each with the number of its first.
fn tiles<'a>(
    weight: &Weight,
    all: Predictions<'a>,
) -> Result<impl Iterator<Item = (usize, Predictions<'a>)> + use<'a>> {
    let vocab = weight.value().dim(0)?;
    if all.rows.len() != all.targets.len() || all.targets.iter().any(|t| *t as usize >= vocab) {
        bail!("{} predicted rows, {} targets, vocabulary of {vocab}", all.rows.len(), all.targets.len());
    }
    let size = tile_rows(vocab, gpu::of(weight.value()).is_some());
    let tiles = all.rows.chunks(size).zip(all.targets.chunks(size)).enumerate();
    Ok(tiles
        .map(move |(tile, (rows, targets))| (tile * size, Predictions { rows, targets, temperature: all.temperature })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embedding::zeros;
    use crate::ops::testing::{assert_close, on_each_device, random, reference_gradients, variable};

    /// The naive reference, differentiable by candle: `[2, R]`, log-probs above entropies.
    fn reference(hidden: &Tensor, weight: &Tensor, at: Predictions<'_>) -> Result<Tensor> {
        let rows = hidden.index_select(&Tensor::new(at.rows, hidden.device())?, 0)?;
        let z = (rows.matmul(&weight.t()?)? / f64::from(at.temperature))?;
        let log_p = candle_nn::ops::log_softmax(&z, 1)?;
        let targets = Tensor::new(at.targets, hidden.device())?.unsqueeze(1)?;
        let entropies = (log_p.exp()? * &log_p)?.sum(1)?.neg()?;
        Tensor::stack(&[&log_p.gather(&targets, 1)?.squeeze(1)?, &entropies], 0)
    }

    /// Rows named twice (one prompt, many completions), several tiles, temperature, both gradients.
    #[test]
    fn forward_and_backward_match_the_reference() -> Result<()> {
        on_each_device(|| {
            for (n, d, v, r, temperature) in [(1, 1, 2, 1, 1.0f32), (9, 24, 61, 30, 0.7), (40, 8, 33, 1100, 1.3)] {
                let rows: Vec<u32> = (0..r).map(|i| (i * 7 % n) as u32).collect();
                let targets: Vec<u32> = (0..r).map(|i| (i * 5 % v) as u32).collect();
                let at = Predictions { rows: &rows, targets: &targets, temperature };
                let (hidden, w, g) = (random(&[n, d], 1), random(&[v, d], 2), random(&[2, r], 3));
                let (hv, wv) = (variable(&hidden), variable(&w));
                let y = reference(&hv, &wv, at)?;
                let expected = reference_gradients(&y, &g, &[&hv, &wv])?;
                let weight = Weight::trainable(w)?;
                let scored = token_logprobs(&hidden, &weight, at)?;
                let got = [&scored.logprobs[..], &scored.entropies].concat();
                assert_close(&Tensor::from_vec(got, (2, r), y.device())?, &y, 1e-5);
                let g = g.to_vec2::<f32>()?;
                let d_hidden = zeros(n, d, &hidden)?;
                let grads = LogprobGrads { logprobs: &g[0], entropies: Some(&g[1]) };
                assert_eq!(token_logprobs_backward(grads, &hidden, &weight, at, &d_hidden)?, scored);
                assert_close(&d_hidden, &expected[0], 2e-5);
                assert_close(weight.grad().expect("trainable"), &expected[1], 2e-5);
            }
            Ok(())
        })
    }

    /// Central differences of l + 0.3 H with respect to the hidden state.
    #[test]
    fn backward_matches_finite_differences() -> Result<()> {
        on_each_device(|| {
            let (hidden, weight) = (random(&[1, 5], 1), Weight::frozen(random(&[7, 5], 2)));
            let at = Predictions { rows: &[0], targets: &[4], temperature: 0.8 };
            let d_hidden = zeros(1, 5, &hidden)?;
            let grads = LogprobGrads { logprobs: &[1.0], entropies: Some(&[0.3]) };
            token_logprobs_backward(grads, &hidden, &weight, at, &d_hidden)?;
            let d_hidden = d_hidden.to_vec2::<f32>()?;
            for i in 0..5 {
                let value = |delta: f32| -> Result<f32> {
                    let mut h = hidden.to_vec2::<f32>()?;
                    h[0][i] += delta;
                    let scored = token_logprobs(&Tensor::new(h, hidden.device())?, &weight, at)?;
                    Ok(scored.logprobs[0] + 0.3 * scored.entropies[0])
                };
                let slope = (value(1e-2)? - value(-1e-2)?) / 2e-2;
                assert!((slope - d_hidden[0][i]).abs() < 1e-3, "{slope} {}", d_hidden[0][i]);
            }
            Ok(())
        })
    }

    #[test]
    fn targets_outside_the_vocabulary_are_errors() {
        let (hidden, weight) = (random(&[1, 5], 1), Weight::frozen(random(&[7, 5], 2)));
        let at = Predictions { rows: &[0], targets: &[7], temperature: 1.0 };
        assert!(token_logprobs(&hidden, &weight, at).is_err());
    }
}
