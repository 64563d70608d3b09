//! From a row of logits to a token and its log-prob.
//!
//! The transformations come in the order of transformers' generation: repetition penalty on the logits, temperature,
//! top-k, top-p, min-p. The token is then found by inverting the cumulative distribution at one uniform draw.

use crate::model::Decoder;
use crate::ops::gpu::{self, Gpu, Launch, Plain, arg};
use crate::ops::head::{logits, row_probabilities, scale_row};
use crate::ops::storage::unset;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeSet;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the most likely tokens whose probabilities add up to this much (Holtzman et al., arXiv:1904.09751); 1 is off.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 is off.
    pub top_k: usize,
    /// Keeps tokens at least this likely relative to the most likely one (arXiv:2407.01082).
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens that occurred already (arXiv:1909.05858); 1 is off.
    pub repetition_penalty: f32,
}

impl SamplingConfig {
    /// The most likely token, always.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the most likely token is taken, without a draw.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Whether tokens are drawn from another distribution than the one whose log-probs are kept.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.top_p < 1.0 || self.top_k > 0 || self.min_p.is_some_and(|p| p > 0.0) || self.has_penalty()
    }

    /// The temperature of the log-probs that are kept: 1 where the sampling is greedy.
    #[must_use]
    pub fn logprob_temperature(&self) -> f32 {
        if self.is_greedy() { 1.0 } else { self.temperature }
    }

    /// Whether tokens that occurred already are penalised.
    #[must_use]
    pub fn has_penalty(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > f32::EPSILON
    }
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: None, repetition_penalty: 1.0 }
    }
}

/// Draws a token from `logits` (used as scratch) at the uniform `draw` in (0, 1); `seen` holds the tokens so far where
/// a repetition penalty is on. Returns the token and its log-prob in the whole distribution, in nats.
///
/// `None`: the logits hold a NaN or nothing finite.
///
/// # Shapes
/// `logits [V]`
#[must_use]
pub fn sample_token(logits: &mut [f32], config: &SamplingConfig, seen: &[u32], draw: f64) -> Option<(u32, f32)> {
    let mut penalized = config.has_penalty().then(|| penalize(logits, seen, config.repetition_penalty));
    let lse = scale_row(logits, config.logprob_temperature()).0;
    if !lse.is_finite() {
        return None;
    }
    let token = if config.is_greedy() {
        most_likely(penalized.as_deref().unwrap_or(logits))
    } else if config.is_truncated() {
        let scores = match &mut penalized {
            Some(scores) => {
                for z in scores.iter_mut() {
                    *z /= config.temperature;
                }
                scores.as_slice()
            }
            None => logits,
        };
        draw_truncated(scores, config, draw)
    } else {
        draw_softmax(logits, lse, draw)
    };
    let token = token?;
    Some((token as u32, logits[token] - lse))
}

/// Logits whose probabilities are made together.
const BLOCK: usize = 256;

/// [`invert`] on the softmax of a row with this logsumexp: whole blocks are passed over by their sums.
fn draw_softmax(logits: &[f32], lse: f32, draw: f64) -> Option<usize> {
    let mut probabilities = [0.0f32; BLOCK];
    let (mut before, mut last) = (0.0, None);
    for (start, block) in (0..).step_by(BLOCK).zip(logits.chunks(BLOCK)) {
        let sum = row_probabilities(block, lse, &mut probabilities);
        if sum > 0.0 {
            last = Some((start, before));
        }
        if before + sum > draw {
            break;
        }
        before += sum;
    }
    // The block that holds the draw, or the last with anything in it.
    let (start, before) = last?;
    let block = &logits[start..logits.len().min(start + BLOCK)];
    row_probabilities(block, lse, &mut probabilities);
    let inside = probabilities[..block.len()].iter().map(|p| f64::from(*p)).enumerate();
    Some(start + invert(inside, draw - before)?)
}

/// The first of the largest values.
fn most_likely(row: &[f32]) -> Option<usize> {
    let better = |best: Option<(usize, f32)>, (i, z): (usize, f32)| match best {
        Some((_, most)) if most >= z => best,
        _ => Some((i, z)),
    };
    row.iter().copied().enumerate().fold(None, better).map(|(i, _)| i)
}

fn penalize(logits: &[f32], seen: &[u32], penalty: f32) -> Vec<f32> {
    let mut scores = logits.to_vec();
    for id in seen {
        let (from, to) = (logits.get(*id as usize), scores.get_mut(*id as usize));
        if let (Some(z), Some(score)) = (from, to) {
            *score = if *z > 0.0 { z / penalty } else { z * penalty };
        }
    }
    scores
}

/// Top-k, top-p, min-p in turn, each on the tokens that the one before left, as transformers' warpers.
fn draw_truncated(scores: &[f32], config: &SamplingConfig, draw: f64) -> Option<usize> {
    let mut kept: Vec<(usize, f64)> = scores.iter().map(|z| f64::from(*z)).enumerate().collect();
    let by_score = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if config.top_k > 0 && config.top_k < kept.len() {
        let (_, kth, _) = kept.select_nth_unstable_by(config.top_k - 1, by_score);
        let least = kth.1;
        // Tokens tied with the last one stay.
        kept.retain(|(_, z)| *z >= least);
    }
    let most = kept.iter().map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max);
    for (_, z) in &mut kept {
        *z = (*z - most).exp();
    }
    if config.top_p < 1.0 {
        kept.sort_unstable_by(by_score);
        let total: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut before = 0.0;
        // A token goes when those above it already reach top_p; the first always stays.
        let count = kept.iter().take_while(|(_, p)| {
            let stays = before < f64::from(config.top_p) * total;
            before += p;
            stays
        });
        let count = count.count().max(1);
        kept.truncate(count);
    }
    if let Some(min_p) = config.min_p {
        // The most likely token has weight 1.
        kept.retain(|(_, p)| *p >= f64::from(min_p));
    }
    kept.sort_unstable_by_key(|(i, _)| *i);
    let total: f64 = kept.iter().map(|(_, p)| p).sum();
    invert(kept.into_iter().map(|(i, p)| (i, p / total)), draw)
}

/// The first token at which the cumulative probability exceeds `draw`; the last possible one if rounding leaves the
/// sum below it.
fn invert(probabilities: impl Iterator<Item = (usize, f64)>, draw: f64) -> Option<usize> {
    let (mut sum, mut last) = (0.0, None);
    for (token, p) in probabilities {
        if p > 0.0 {
            sum += p;
            last = Some(token);
            if sum > draw {
                break;
            }
        }
    }
    last
}

/// The settings as `sampler.cu` reads them.
#[derive(Clone, Copy)]
#[repr(C)]
struct OnGpu {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
}

// SAFETY: numbers of four bytes, laid out as in C.
unsafe impl Plain for OnGpu {}

/// [`sample_token`] for hidden states on a GPU, `hidden [N, D]`, with the seen tokens and the draw of each row.
///
/// # Errors
/// Fails where a tensor operation fails.
pub fn sample_on_gpu(
    decoder: &Decoder,
    hidden: &Tensor,
    config: &SamplingConfig,
    seen: &[Vec<u32>],
    draws: &[f64],
) -> Result<Vec<Option<(u32, f32)>>> {
    let z = logits(hidden, decoder.head())?;
    sample_rows(&z, config, seen, draws)
}

fn sample_rows(
    z: &Tensor,
    config: &SamplingConfig,
    seen: &[Vec<u32>],
    draws: &[f64],
) -> Result<Vec<Option<(u32, f32)>>> {
    let Some(gpu) = gpu::of(z) else { bail!("expected logits on a GPU") };
    let (rows, vocab_size) = z.dims2()?;
    let scores =
        if config.has_penalty() { penalize_on_gpu(&gpu, z, seen, config.repetition_penalty)? } else { z.clone() };
    let (ids, logprobs) = (gpu.buffer::<u32>(rows)?, gpu.buffer::<f32>(rows)?);
    let draws = gpu.upload(draws)?;
    let pointers = (draws.pointer(), ids.pointer(), logprobs.pointer());
    let settings = OnGpu {
        temperature: config.temperature,
        top_p: config.top_p,
        min_p: config.min_p.unwrap_or(0.0),
        top_k: config.top_k.min(vocab_size) as u32,
    };
    let (view, scores) = (gpu.view(z)?, gpu.view(&scores)?);
    let args =
        [arg(&view.matrix), arg(&scores.matrix), arg(&pointers.0), arg(&settings), arg(&pointers.1), arg(&pointers.2)];
    gpu.launch("sample", Launch::wide(rows), &args)?;
    let (ids, logprobs) = (gpu.download::<u32>(&ids, rows)?, gpu.download::<f32>(&logprobs, rows)?);
    Ok(ids.into_iter().zip(logprobs).map(|(id, logprob)| (id != u32::MAX).then_some((id, logprob))).collect())
}

fn penalize_on_gpu(gpu: &Gpu, z: &Tensor, seen: &[Vec<u32>], penalty: f32) -> Result<Tensor> {
    let scores = unset(z.dim(0)?, z.dim(1)?, z)?;
    let distinct: Vec<BTreeSet<u32>> = seen.iter().map(|ids| ids.iter().copied().collect()).collect();
    let mut starts = vec![0];
    starts.extend(distinct.iter().scan(0, |end, ids| {
        *end += ids.len() as u32;
        Some(*end)
    }));
    let ids: Vec<u32> = distinct.into_iter().flatten().collect();
    let (starts, ids) = (gpu.upload(&starts)?, gpu.upload(&ids)?);
    let (from, to, starts, ids) = (gpu.view(z)?, gpu.view(&scores)?, starts.pointer(), ids.pointer());
    let args = [arg(&from.matrix), arg(&to.matrix), arg(&starts), arg(&ids), arg(&penalty)];
    gpu.launch("penalize", Launch::wide(z.dim(0)?), &args)?;
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(any(emulation, feature = "cuda"))]
    use crate::ops::testing::{device, on_gpu, random};

    const LOGITS: [f32; 5] = [1.0, 3.0, -2.0, 2.0, 0.0];

    fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|z| f64::from(z / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / total).collect()
    }

    /// The share of a fine grid of draws that falls to each token.
    fn shares(config: &SamplingConfig, seen: &[u32]) -> Vec<f64> {
        let mut counts = vec![0.0; LOGITS.len()];
        let n = 20_000;
        for i in 0..n {
            let mut row = LOGITS;
            let (token, _) = sample_token(&mut row, config, seen, (f64::from(i) + 0.5) / f64::from(n)).unwrap();
            counts[token as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    fn assert_shares(config: &SamplingConfig, seen: &[u32], expected: &[f64]) {
        for (got, expected) in shares(config, seen).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-3, "{config:?}: {got} {expected}");
        }
    }

    /// Draws follow the softmax at the temperature, and the log-prob is the token's own.
    #[test]
    fn draws_follow_the_distribution() {
        for temperature in [0.5, 1.0, 1.7] {
            let config = SamplingConfig { temperature, ..SamplingConfig::default() };
            let expected = probabilities(&LOGITS, temperature);
            assert_shares(&config, &[], &expected);
            let (token, logprob) = sample_token(&mut LOGITS.clone(), &config, &[], 0.5).unwrap();
            assert!((f64::from(logprob) - expected[token as usize].ln()).abs() < 1e-5);
        }
    }

    /// What transformers' warpers leave of the row: top-k 3 keeps {1, 3, 0}; top-p 0.8 keeps {1, 3} since the first
    /// has 0.63; min-p 0.2 keeps tokens within a factor 5 of the first: {1, 3}.
    #[test]
    fn truncation_keeps_the_right_tokens() {
        let p = probabilities(&LOGITS, 1.0);
        let kept = |tokens: &[usize]| {
            let total: f64 = tokens.iter().map(|t| p[*t]).sum();
            (0..LOGITS.len()).map(|t| if tokens.contains(&t) { p[t] / total } else { 0.0 }).collect::<Vec<_>>()
        };
        let base = SamplingConfig::default();
        assert_shares(&SamplingConfig { top_k: 3, ..base }, &[], &kept(&[0, 1, 3]));
        assert_shares(&SamplingConfig { top_p: 0.8, ..base }, &[], &kept(&[1, 3]));
        assert_shares(&SamplingConfig { top_p: 0.01, ..base }, &[], &kept(&[1]));
        assert_shares(&SamplingConfig { min_p: Some(0.2), ..base }, &[], &kept(&[1, 3]));
        // After top-k 2 the first token has 0.73 of what is left, so top-p 0.7 keeps it alone.
        assert_shares(&SamplingConfig { top_k: 2, top_p: 0.7, ..base }, &[], &kept(&[1]));
    }

    /// The penalty acts on the logits before the temperature, and the kept log-prob is the model's own.
    #[test]
    fn repetition_penalty_divides_or_multiplies() {
        let config = SamplingConfig { repetition_penalty: 2.0, temperature: 0.5, ..SamplingConfig::default() };
        assert_shares(&config, &[1, 2, 1], &probabilities(&[1.0, 1.5, -4.0, 2.0, 0.0], 0.5));
        let greedy = SamplingConfig { repetition_penalty: 2.0, ..SamplingConfig::greedy() };
        let (token, logprob) = sample_token(&mut LOGITS.clone(), &greedy, &[1], 0.5).unwrap();
        assert_eq!(token, 3);
        assert!((f64::from(logprob) - probabilities(&LOGITS, 1.0)[3].ln()).abs() < 1e-5);
    }

    /// Ties go to the first token; draws at the very ends stay inside; rows that are not numbers are refused.
    #[test]
    fn edges() {
        let greedy = SamplingConfig::greedy();
        assert_eq!(sample_token(&mut [1.0, 2.0, 2.0], &greedy, &[], 0.5).unwrap().0, 1);
        let plain = SamplingConfig::default();
        assert_eq!(sample_token(&mut [0.0, f32::NEG_INFINITY], &plain, &[], 1.0 - 1e-16).unwrap().0, 0);
        assert_eq!(sample_token(&mut [f32::NEG_INFINITY, 0.0], &plain, &[], 1e-300).unwrap().0, 1);
        assert!(sample_token(&mut [0.0, f32::NAN], &plain, &[], 0.5).is_none());
        assert!(sample_token(&mut [f32::NEG_INFINITY; 2], &plain, &[], 0.5).is_none());
        assert!(sample_token(&mut [], &plain, &[], 0.5).is_none());
    }

    /// The kernel for a GPU draws the token that the sampler on the CPU draws, for nearly every draw (the sums are
    /// rounded differently), with the same log-prob.
    #[cfg(any(emulation, feature = "cuda"))]
    #[test]
    fn draws_on_a_gpu_are_those_on_the_cpu() {
        const ROWS: usize = 40;
        const VOCABULARY: usize = 700;
        let base = SamplingConfig::default();
        let z = random(&[ROWS, VOCABULARY], 5).affine(3.0, 0.0).expect("f32");
        // Some ties, and a token that cannot be drawn.
        let mut rows = z.affine(4.0, 0.0).and_then(|z| z.round()?.affine(0.25, 0.0)?.to_vec2::<f32>()).expect("f32");
        for row in &mut rows {
            row[3] = f32::NEG_INFINITY;
        }
        let z = Tensor::new(rows.clone(), z.device()).expect("rows of one length");
        let draws: Vec<f64> = (0..ROWS).map(|i| (i as f64 + 0.5) / ROWS as f64).collect();
        let seen: Vec<Vec<u32>> = (0..ROWS as u32).map(|i| vec![i, 2 * i, 2 * i, 600]).collect();
        for config in [
            base,
            SamplingConfig { temperature: 0.7, ..base },
            SamplingConfig::greedy(),
            SamplingConfig { top_k: 5, ..base },
            SamplingConfig { top_k: 5000, ..base },
            SamplingConfig { top_p: 0.5, ..base },
            SamplingConfig { top_p: 1e-6, ..base },
            SamplingConfig { min_p: Some(0.2), ..base },
            SamplingConfig { top_k: 50, top_p: 0.9, min_p: Some(0.05), temperature: 1.5, ..base },
            SamplingConfig { repetition_penalty: 1.3, ..base },
        ] {
            let on_device = || sample_rows(&z.to_device(&device())?, &config, &seen, &draws);
            let found = on_gpu(on_device).expect("runs");
            let expected = rows.iter().zip(&seen).zip(&draws);
            let expected = expected.map(|((row, seen), draw)| sample_token(&mut row.clone(), &config, seen, *draw));
            let mut same = 0;
            for (found, expected) in found.iter().zip(expected) {
                let ((id, logprob), (token, expected)) = (found.expect("finite"), expected.expect("finite"));
                if id == token {
                    same += 1;
                    assert!((logprob - expected).abs() < 1e-5, "{config:?}: {logprob} {expected}");
                }
            }
            assert!(same >= ROWS - 1, "{config:?}: {same} of {ROWS} draws agree");
        }
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            let z = Tensor::full(bad, (1, 9), z.device()).expect("fits");
            let on_device = || sample_rows(&z.to_device(&device())?, &base, &[vec![]], &[0.5]);
            let found = on_gpu(on_device).expect("runs");
            assert_eq!(found, [None], "{bad}");
        }
    }
}
