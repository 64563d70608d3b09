//! AdamW (arXiv:1711.05101, algorithm 2) with f32 master weights and moments, as torch's `AdamW` computes it.
//!
//! One pass over memory updates parameter and moments together. Multiplications and additions are kept apart (no
//! fused multiply-add), so that every processor gives the same bits.

use super::CHUNK;
use crate::ops::Weight;
use crate::ops::gpu::{self, Gpu, Launch, Plain, Pointer, arg};
use crate::ops::simd::kernel;
use crate::ops::storage::{mat, update};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment, in [0, 1); default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1); default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; above 0, default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay a step, times the learning rate; at least 0, default 0. Norms and biases are not decayed.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

impl AdamWConfig {
    /// The factors of one update.
    ///
    /// `step` counts from 1; `lr` is the learning rate of this step; `grad_scale` multiplies every gradient (the clip
    /// factor, see [`super::clip_factor`]).
    #[must_use]
    pub fn at_step(&self, step: u64, lr: f64, grad_scale: f64) -> AdamWStep {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - self.beta1.powi(steps);
        let correction2 = 1.0 - self.beta2.powi(steps);
        AdamWStep {
            grad_scale: grad_scale as f32,
            decay: (1.0 - lr * self.weight_decay) as f32,
            weight1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            weight2: (1.0 - self.beta2) as f32,
            root_factor2: correction2.sqrt().recip() as f32,
            eps: self.eps as f32,
            step_size: (lr / correction1) as f32,
        }
    }
}

/// The factors of one update, computed in f64 and rounded once. The kernel in `adamw.cu` reads them in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct AdamWStep {
    grad_scale: f32,
    /// `1 - lr * weight_decay`.
    decay: f32,
    /// `1 - beta1`.
    weight1: f32,
    beta2: f32,
    /// `1 - beta2`.
    weight2: f32,
    /// `1 / sqrt(1 - beta2^step)`: a division an element less than torch, one rounding apart.
    root_factor2: f32,
    eps: f32,
    /// `lr / (1 - beta1^step)`.
    step_size: f32,
}

impl AdamWStep {
    /// The factors for a parameter that is decayed or not.
    fn decayed(self, decay: bool) -> Self {
        Self { decay: if decay { self.decay } else { 1.0 }, ..self }
    }
}

/// Updates one parameter and its moments in place.
///
/// `theta <- theta (1 - lr wd) - lr/(1 - beta1^s) * m / (sqrt(v)/sqrt(1 - beta2^s) + eps)` with
/// `m <- m + (1 - beta1)(g - m)`, `v <- beta2 v + (1 - beta2) g^2`; without `decay` the first factor is left out.
///
/// # Shapes
/// `theta`, `m`, `v`, `grad`: all `[n]`.
///
/// # Panics
/// When the lengths differ.
pub fn adamw_update(theta: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], step: &AdamWStep, decay: bool) {
    let n = theta.len();
    assert!(m.len() == n && v.len() == n && grad.len() == n, "parameter, moments and gradient differ in length");
    let step = step.decayed(decay);
    theta
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(((theta, m), v), grad)| update_chunk(theta, m, v, grad, step));
}

kernel! {
    fn update_chunk(theta: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], step: AdamWStep) {
        for (((theta, m), v), grad) in theta.iter_mut().zip(m).zip(v).zip(grad) {
            let g = grad * step.grad_scale;
            *m += step.weight1 * (g - *m);
            *v = *v * step.beta2 + step.weight2 * g * g;
            let denominator = v.sqrt() * step.root_factor2 + step.eps;
            *theta = *theta * step.decay - step.step_size * (*m / denominator);
        }
    }
}

/// Whether a parameter is subject to weight decay: not a bias and not the weight of a norm, as transformers decides.
///
/// # Examples
/// ```
/// use candlewick::optim::has_weight_decay;
///
/// assert!(has_weight_decay("model.layers.0.self_attn.q_proj.weight"));
/// assert!(!has_weight_decay("model.layers.0.self_attn.q_proj.bias"));
/// assert!(!has_weight_decay("model.layers.0.input_layernorm.weight"));
/// ```
#[must_use]
pub fn has_weight_decay(name: &str) -> bool {
    !name.split('.').any(|part| part == "bias" || part.ends_with("norm"))
}

/// The optimizer's state: moments in the order of the parameters, and the number of steps done.
///
/// Everything is visible, because it is saved with a checkpoint and read back.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Settings.
    pub config: AdamWConfig,
    /// Steps done; the first update is step 1.
    pub step: u64,
    /// First moment of each parameter, f32, on its device.
    pub m: Vec<Tensor>,
    /// Second moment of each parameter, f32, on its device.
    pub v: Vec<Tensor>,
    /// Whether each parameter is decayed.
    pub decay: Vec<bool>,
}

impl AdamW {
    /// Moments of zero for parameters given by `(value, is decayed)`.
    ///
    /// # Errors
    /// Fails where they cannot be allocated.
    pub fn new<'a>(config: AdamWConfig, parameters: impl IntoIterator<Item = (&'a Tensor, bool)>) -> Result<Self> {
        let (values, decay): (Vec<&Tensor>, Vec<bool>) = parameters.into_iter().unzip();
        let zeros = |value: &&Tensor| Tensor::zeros(value.shape(), DType::F32, value.device());
        let moments = || values.iter().map(zeros).collect::<Result<Vec<_>>>();
        Ok(Self { config, step: 0, m: moments()?, v: moments()?, decay })
    }

    /// Begins the next step and gives its factors, to be passed to [`AdamW::update`] for every parameter.
    pub fn begin_step(&mut self, lr: f64, grad_scale: f64) -> AdamWStep {
        self.step += 1;
        self.config.at_step(self.step, lr, grad_scale)
    }

    /// Updates parameter `index` in place; a weight without gradient is left alone.
    ///
    /// # Errors
    /// Fails where the weight has another shape than its moments.
    pub fn update(&self, index: usize, weight: &Weight, step: &AdamWStep) -> Result<()> {
        let (m, v, decay) = (&self.m[index], &self.v[index], self.decay[index]);
        let Some(grad) = weight.grad() else { return Ok(()) };
        if m.dims() != grad.dims() || v.dims() != grad.dims() {
            bail!("a gradient {:?} with moments {:?} and {:?}", grad.dims(), m.dims(), v.dims());
        }
        if let Some(gpu) = gpu::of(grad) {
            return update_on_gpu(&gpu, weight, grad, m, v, step.decayed(decay));
        }
        let flat = grad.flatten_all()?;
        let (storage, layout) = flat.storage_and_layout();
        let grad = mat(&storage, layout)?.data;
        update(&weight.value().flatten_all()?, |theta| {
            update(&m.flatten_all()?, |m| {
                update(&v.flatten_all()?, |v| {
                    adamw_update(theta.data, m.data, v.data, grad, step, decay);
                    Ok(())
                })
            })
        })
    }
}

// SAFETY: eight numbers of four bytes, laid out as in C.
unsafe impl Plain for AdamWStep {}

fn update_on_gpu(gpu: &Gpu, weight: &Weight, grad: &Tensor, m: &Tensor, v: &Tensor, step: AdamWStep) -> Result<()> {
    let address = |tensor: &Tensor| Ok::<_, candle_core::Error>(gpu.view(&tensor.flatten_all()?)?.matrix.data);
    let rounded = weight.value().dtype() != DType::F32;
    let value = if rounded { address(weight.value())? } else { Pointer::NULL };
    let (master, m, v, count) = (address(weight.master())?, address(m)?, address(v)?, grad.elem_count());
    let (grad, size) = (address(grad)?, count as u64);
    let args = [arg(&master), arg(&value), arg(&m), arg(&v), arg(&grad), arg(&size), arg(&step)];
    gpu.launch("adamw", Launch::elements(count), &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::storage;
    #[cfg(any(emulation, feature = "cuda"))]
    use crate::ops::testing::on_gpu;
    use crate::ops::testing::{device, on_each_device};
    use crate::rng::{Stream, uniform};
    #[cfg(any(emulation, feature = "cuda"))]
    use half::bf16;

    fn draws(kind: u64, n: usize) -> Vec<f32> {
        (0..n).map(|i| uniform(1, Stream::Data, [kind, i as u64, 0, 0]) as f32 - 0.5).collect()
    }

    fn weight(n: usize) -> Weight {
        Weight::trainable(Tensor::new(draws(0, n), &device()).expect("fits")).expect("fits")
    }

    /// One update with the gradient of step `t`.
    fn update(optimizer: &mut AdamW, weight: &Weight, t: u64, (lr, grad_scale): (f64, f64)) {
        let grad = weight.grad().expect("trainable");
        let new = Tensor::new(draws(t, grad.elem_count()), &device()).expect("fits");
        storage::copy(grad, &new).expect("the same shape");
        let step = optimizer.begin_step(lr, grad_scale);
        optimizer.update(0, weight, &step).expect("the same shape");
    }

    /// The same formula in f64, written the plain way.
    fn reference(theta: &mut [f64], m: &mut [f64], v: &mut [f64], grad: &[f32], t: i32, decay: f64) {
        for i in 0..theta.len() {
            let g = f64::from(grad[i]) * 0.5;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
            theta[i] = theta[i] * (1.0 - 0.01 * decay) - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
        }
    }

    #[test]
    fn matches_the_formula_in_f64() {
        on_each_device(|| {
            for (n, decayed) in [1, 7, 33, 100].into_iter().flat_map(|n| [(n, false), (n, true)]) {
                let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
                let weight = weight(n);
                let mut optimizer = AdamW::new(config, [(weight.value(), decayed)]).expect("fits");
                let mut expected: Vec<f64> = draws(0, n).into_iter().map(f64::from).collect();
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                for t in 1..=20 {
                    update(&mut optimizer, &weight, t, (0.01, 0.5));
                    reference(&mut expected, &mut m, &mut v, &draws(t, n), t as i32, if decayed { 0.1 } else { 0.0 });
                }
                assert_eq!(optimizer.step, 20);
                for (got, expected) in weight.value().to_vec1::<f32>().expect("f32").iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-6, "{got} {expected}");
                }
            }
            Ok(())
        })
        .expect("runs");
    }

    /// A bf16 weight is the rounded master, which moves as an f32 weight does.
    #[cfg(any(emulation, feature = "cuda"))]
    #[test]
    fn masters_are_updated_in_f32() {
        on_gpu(|| {
            let (plain, mixed) = (weight(33), weight(33));
            let mixed = Weight::trainable_as(mixed.value().clone(), DType::BF16).expect("fits");
            for weight in [&plain, &mixed] {
                let parameters = [(weight.master(), true)];
                let mut optimizer = AdamW::new(AdamWConfig::default(), parameters).expect("fits");
                (1..=5).for_each(|t| update(&mut optimizer, weight, t, (0.01, 1.0)));
            }
            let master = mixed.master().to_vec1::<f32>().expect("f32");
            assert_eq!(master, plain.value().to_vec1::<f32>().expect("f32"));
            let rounded: Vec<bf16> = master.into_iter().map(bf16::from_f32).collect();
            assert_eq!(mixed.value().to_vec1::<bf16>().expect("bf16"), rounded);
        });
    }

    #[test]
    fn threads_do_not_show_in_the_result() {
        let n = 3 * CHUNK + 17;
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let weight = weight(n);
                let mut optimizer = AdamW::new(AdamWConfig::default(), [(weight.value(), true)]).expect("fits");
                (1..=3).for_each(|t| update(&mut optimizer, &weight, t, (1e-3, 1.0)));
                let all = [weight.value(), &optimizer.m[0], &optimizer.v[0]];
                all.map(|tensor| tensor.to_vec1::<f32>().expect("f32"))
            })
        };
        let one = run(1);
        for threads in [2, 3] {
            assert!(run(threads) == one, "{threads} threads differ from one");
        }
    }

    #[test]
    fn norms_and_biases_are_not_decayed() {
        let decayed = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.3.mlp.down_proj.weight"];
        let kept = [
            "model.norm.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.k_proj.bias",
        ];
        assert!(decayed.iter().all(|name| has_weight_decay(name)));
        assert!(!kept.iter().any(|name| has_weight_decay(name)));
    }
}
