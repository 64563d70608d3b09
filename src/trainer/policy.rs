//! The model being trained: gradients of micro-batches added up, then one update. The objective is the caller's; steps
//! and their order are not known here.

use super::TrainError;
use crate::algorithm::Objective;
use crate::batch::{Group, MicroBatch, largest, pack};
use crate::model::{Decoder, Recorder};
use crate::ops::elementwise::add_into;
use crate::ops::head::{LogprobGrads, Predictions, TokenLogprobs, token_logprobs, token_logprobs_backward};
use crate::ops::storage::zero;
use crate::optim::{AdamW, AdamWConfig, LrSchedule, clip_factor, compute_grad_norm, has_weight_decay};
use crate::rng::{self, Stream};
use crate::telemetry::{NonFinite, Watch};
use candle_core::Tensor;
use rayon::prelude::*;

/// How a policy learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyConfig {
    /// Decays, epsilon, weight decay.
    pub adamw: AdamWConfig,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The share of it that each step uses.
    pub schedule: LrSchedule,
    /// Bound of the global gradient norm; `None`: no clipping.
    pub max_grad_norm: Option<f64>,
    /// Keep only each layer's input for the backward pass and compute the rest again.
    pub gradient_checkpointing: bool,
    /// Names the draws of an adapter's dropout.
    pub seed: u64,
}

/// A decoder with trainable parameters and its optimizer.
#[derive(Debug)]
pub struct Policy {
    /// The model, which also samples.
    pub decoder: Decoder,
    /// Both moments of every trained parameter.
    pub optimizer: AdamW,
    /// How it learns.
    pub config: PolicyConfig,
}

/// Derivatives of a step's loss with respect to what a micro-batch predicts.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenGrads {
    /// By each log-prob, `[R]`.
    pub logprobs: Vec<f64>,
    /// By each entropy, `[R]`; `None`: the loss does not depend on them.
    pub entropies: Option<Vec<f64>>,
}

impl From<Objective> for TokenGrads {
    fn from(objective: Objective) -> Self {
        Self { logprobs: objective.grad, entropies: objective.entropy_grad }
    }
}

/// What an update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// L2 norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate of this update.
    pub learning_rate: f64,
}

impl Policy {
    /// Wraps a decoder whose parameters, or those of its adapter, are trainable; moments start at zero.
    ///
    /// # Errors
    /// Fails where the moments cannot be allocated.
    pub fn new(decoder: Decoder, config: PolicyConfig) -> Result<Self, TrainError> {
        let parameters = decoder.trained().iter().map(|p| (p.weight.value(), has_weight_decay(&p.name)));
        let optimizer = AdamW::new(config.adamw, parameters)?;
        Ok(Self { decoder, optimizer, config })
    }

    /// Runs micro-batches forward and backward and adds up their gradients. For each, `objective(index, score)` gives
    /// the derivatives of the step's loss with respect to the log-probs and entropies of the predicted tokens, which
    /// `score` computes; an objective that knows them without does not call it. Returns, in order, the log-probs and
    /// entropies and what else the objective gave.
    ///
    /// # Shapes
    /// log-probs, entropies and derivatives `[R]` (see [`MicroBatch`]), nats
    ///
    /// # Errors
    /// Passes on what `objective` returns.
    pub fn accumulate<T: Send>(
        &self,
        batches: &[MicroBatch],
        temperature: f32,
        objective: impl Fn(usize, &Score<'_>) -> Result<(TokenGrads, T), TrainError> + Sync,
    ) -> Result<Vec<(TokenLogprobs, T)>, TrainError> {
        self.in_lanes(batches.len(), |decoder, index| {
            run(decoder, &batches[index], temperature, self.recorder(index), |score| objective(index, score))
        })
    }

    /// Calls `run(decoder, index)` for each of `num_batches` micro-batches, several side by side where the model is small:
    /// it adds the gradients of that micro-batch to those of the decoder. Returns, in order, what it gave.
    ///
    /// # Errors
    /// Passes on what `run` returns.
    pub(super) fn in_lanes<T: Send>(
        &self,
        num_batches: usize,
        run: impl Fn(&Decoder, usize) -> Result<T, TrainError> + Sync,
    ) -> Result<Vec<T>, TrainError> {
        let count = self.num_lanes().min(num_batches).max(1);
        let own = (1..count).map(|_| self.decoder.with_own_gradients()).collect::<Result<Vec<_>, _>>()?;
        let lane = |(lane, decoder): (usize, &Decoder)| {
            (lane..num_batches).step_by(count).map(|index| run(decoder, index)).collect::<Result<Vec<_>, TrainError>>()
        };
        let decoders: Vec<&Decoder> = std::iter::once(&self.decoder).chain(&own).collect();
        let found = if count == 1 {
            // On the calling thread: a GPU is used from one.
            vec![lane((0, &self.decoder))?]
        } else {
            decoders.into_par_iter().enumerate().map(lane).collect::<Result<Vec<_>, _>>()?
        };
        for decoder in &own {
            self.add_gradients(decoder)?;
        }
        let mut lanes: Vec<_> = found.into_iter().map(Vec::into_iter).collect();
        Ok((0..num_batches).filter_map(|index| lanes[index % count].next()).collect())
    }

    /// An empty record of micro-batch `index` of this update.
    fn recorder(&self, index: usize) -> Recorder {
        let noise = rng::bits(self.config.seed, Stream::Dropout, [self.optimizer.step, index as u64, 0, 0]);
        Recorder::new(self.config.gradient_checkpointing).with_noise(noise)
    }

    /// Cuts groups into micro-batches of at most `max_tokens` tokens for [`Policy::accumulate`]. Lanes share the tokens,
    /// but a group is not cut for their sake.
    #[must_use]
    pub fn pack(&self, groups: &[Group<'_>], max_tokens: usize) -> Vec<MicroBatch> {
        pack(groups, self.lane_tokens(max_tokens, largest(groups)))
    }

    /// The tokens of a micro-batch where lanes share `max_tokens`, but none is too small for the `largest` group.
    pub(super) fn lane_tokens(&self, max_tokens: usize, largest: usize) -> usize {
        (max_tokens / self.num_lanes()).max(largest).min(max_tokens)
    }

    /// Micro-batches that are run side by side. It depends on the model alone: the number of threads must not change
    /// the order of the sums.
    fn num_lanes(&self) -> usize {
        let parameters: usize = self.decoder.params().iter().map(|p| p.weight.value().elem_count()).sum();
        if parameters <= SMALL_MODEL && self.decoder.runs_in_threads() { LANES } else { 1 }
    }

    /// Adds the gradients of a decoder of the same shape.
    fn add_gradients(&self, other: &Decoder) -> Result<(), TrainError> {
        for (own, other) in self.decoder.trained().iter().zip(other.trained()) {
            let (Some(sum), Some(grad)) = (own.weight.grad(), other.weight.grad()) else { continue };
            add_into(&sum.flatten_all()?.unsqueeze(0)?, &grad.flatten_all()?.unsqueeze(0)?)?;
        }
        Ok(())
    }

    /// Clips the accumulated gradient, updates the weights in place and clears the gradient. `step` counts from 1.
    ///
    /// # Errors
    /// [`NonFinite`] where the gradient is not finite; the weights are untouched then.
    pub fn update(&mut self, step: u64) -> Result<Update, TrainError> {
        let grads: Vec<&Tensor> = self.decoder.trained().iter().filter_map(|p| p.weight.grad()).collect();
        let grad_norm = compute_grad_norm(&grads)?;
        Watch::require_finite(step, "grad_norm", grad_norm)?;
        let learning_rate = self.config.learning_rate * self.config.schedule.factor(step - 1);
        let factors = self.optimizer.begin_step(learning_rate, clip_factor(grad_norm, self.config.max_grad_norm));
        for (index, param) in self.decoder.trained().iter().enumerate() {
            self.optimizer.update(index, &param.weight, &factors)?;
        }
        self.clear_gradients()?;
        Ok(Update { grad_norm, learning_rate })
    }

    /// Forgets the gradients that were added up.
    ///
    /// # Errors
    /// Fails for parameters that are not f32 on the CPU.
    pub fn clear_gradients(&self) -> Result<(), TrainError> {
        Ok(self.decoder.trained().iter().filter_map(|p| p.weight.grad()).try_for_each(zero)?)
    }
}

/// Computes the log-probs and entropies of a micro-batch.
pub type Score<'a> = dyn Fn() -> Result<TokenLogprobs, TrainError> + 'a;

/// Micro-batches of a small model that are run side by side, each with gradients of its own: the operations of a small
/// model are too short to be shared by threads.
const LANES: usize = 4;
/// Parameters up to which a model is small: so much memory for gradients is nothing beside the program's own.
const SMALL_MODEL: usize = 4 << 20;

/// One micro-batch forward and backward; its gradients are added to those of `decoder`.
fn run<T>(
    decoder: &Decoder,
    batch: &MicroBatch,
    temperature: f32,
    mut recorder: Recorder,
    objective: impl FnOnce(&Score<'_>) -> Result<(TokenGrads, T), TrainError>,
) -> Result<(TokenLogprobs, T), TrainError> {
    let hidden = decoder.forward(&batch.tokens, Some(&mut recorder))?;
    let predictions = predictions(batch, temperature);
    let (grads, more) = objective(&|| Ok(token_logprobs(&hidden, decoder.head(), predictions)?))?;
    let narrow = |grads: &[f64]| grads.iter().map(|g| *g as f32).collect::<Vec<f32>>();
    let (of_logprobs, of_entropies) = (narrow(&grads.logprobs), grads.entropies.as_deref().map(narrow));
    let d_hidden = hidden.zeros_like()?;
    let upstream = LogprobGrads { logprobs: &of_logprobs, entropies: of_entropies.as_deref() };
    let found = token_logprobs_backward(upstream, &hidden, decoder.head(), predictions, &d_hidden)?;
    drop(hidden);
    decoder.backward(recorder, &batch.tokens, &d_hidden)?;
    Ok((found, more))
}

/// Refuses a loss that is not finite; the gradients that were added up are forgotten with the run.
pub(super) fn require_finite_loss(step: u64, loss: f64) -> Result<(), NonFinite> {
    Watch::require_finite(step, "loss", loss)
}

/// Log-probs and entropies of a micro-batch's predictions, without a graph.
pub(super) fn score(decoder: &Decoder, batch: &MicroBatch, temperature: f32) -> Result<TokenLogprobs, TrainError> {
    let hidden = decoder.forward(&batch.tokens, None)?;
    Ok(token_logprobs(&hidden, decoder.head(), predictions(batch, temperature))?)
}

/// What a micro-batch predicts, at a temperature.
fn predictions(batch: &MicroBatch, temperature: f32) -> Predictions<'_> {
    Predictions { rows: &batch.prediction_rows, targets: &batch.targets, temperature }
}
