//! The model being trained: gradients of micro-batches added up, then one update. The objective is the caller's; steps
//! and their order are not known here.

use super::TrainError;
use crate::algorithm::Objective;
use crate::batch::MicroBatch;
use crate::model::{Decoder, Recorder};
use crate::ops::head::{LogprobGrads, Predictions, TokenLogprobs, token_logprobs, token_logprobs_backward};
use crate::ops::storage::{mat, update, zero};
use crate::optim::{AdamW, AdamWConfig, LrSchedule, clip_factor, has_weight_decay, sum_of_squares};
use crate::telemetry::{NonFinite, Watch};
use candle_core::Tensor;

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
}

/// A decoder with trainable parameters and its optimizer.
#[derive(Debug)]
pub struct Policy {
    /// The model, which also samples.
    pub decoder: Decoder,
    /// Both moments of every parameter.
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
    /// Wraps a decoder whose parameters are trainable; moments start at zero.
    #[must_use]
    pub fn new(decoder: Decoder, config: PolicyConfig) -> Self {
        let sizes = decoder.params().iter().map(|p| (p.weight.value().elem_count(), has_weight_decay(&p.name)));
        let optimizer = AdamW::new(config.adamw, sizes);
        Self { decoder, optimizer, config }
    }

    /// Runs a micro-batch forward and backward: `objective` turns log-probs and entropies of the predicted tokens into
    /// the derivatives of the step's loss with respect to them, and the gradients are added up. Returns the values.
    ///
    /// # Shapes
    /// log-probs, entropies and derivatives `[R]` (see [`MicroBatch`]), nats
    ///
    /// # Errors
    /// Passes on what `objective` returns.
    pub fn accumulate(
        &self,
        batch: &MicroBatch,
        temperature: f32,
        objective: impl FnOnce(&TokenLogprobs) -> Result<TokenGrads, TrainError>,
    ) -> Result<TokenLogprobs, TrainError> {
        let score = |hidden: &Tensor| {
            let scored = token_logprobs(hidden, self.decoder.head(), predictions(batch, temperature))?;
            objective(&scored)
        };
        self.run(batch, temperature, score)
    }

    /// [`Policy::accumulate`] where the derivatives are known before the model is run, which saves computing the
    /// log-probs twice.
    ///
    /// # Errors
    /// Fails where a tensor operation fails.
    pub fn accumulate_known(
        &self,
        batch: &MicroBatch,
        temperature: f32,
        grads: TokenGrads,
    ) -> Result<TokenLogprobs, TrainError> {
        self.run(batch, temperature, |_| Ok(grads))
    }

    fn run(
        &self,
        batch: &MicroBatch,
        temperature: f32,
        grads: impl FnOnce(&Tensor) -> Result<TokenGrads, TrainError>,
    ) -> Result<TokenLogprobs, TrainError> {
        let mut recorder = Recorder::new(self.config.gradient_checkpointing);
        let hidden = self.decoder.forward(&batch.tokens, Some(&mut recorder))?;
        let grads = grads(&hidden)?;
        let narrow = |grads: &[f64]| grads.iter().map(|g| *g as f32).collect::<Vec<f32>>();
        let (of_logprobs, of_entropies) = (narrow(&grads.logprobs), grads.entropies.as_deref().map(narrow));
        let d_hidden = hidden.zeros_like()?;
        let upstream = LogprobGrads { logprobs: &of_logprobs, entropies: of_entropies.as_deref() };
        let predictions = predictions(batch, temperature);
        let found = token_logprobs_backward(upstream, &hidden, self.decoder.head(), predictions, &d_hidden)?;
        drop(hidden);
        self.decoder.backward(recorder, &batch.tokens, &d_hidden)?;
        Ok(found)
    }

    /// Clips the accumulated gradient, updates the weights in place and clears the gradient. `step` counts from 1.
    ///
    /// # Errors
    /// [`NonFinite`] where the gradient is not finite; the weights are untouched then.
    pub fn update(&mut self, step: u64) -> Result<Update, TrainError> {
        let grads: Vec<&Tensor> = self.decoder.params().iter().filter_map(|p| p.weight.grad()).collect();
        let mut squares = 0.0;
        for grad in &grads {
            let flat = grad.flatten_all()?;
            let (storage, layout) = flat.storage_and_layout();
            squares += sum_of_squares(mat(&storage, layout)?.data);
        }
        let grad_norm = squares.sqrt();
        Watch::require_finite(step, "grad_norm", grad_norm)?;
        let learning_rate = self.config.learning_rate * self.config.schedule.factor(step - 1);
        let factors = self.optimizer.begin_step(learning_rate, clip_factor(grad_norm, self.config.max_grad_norm));
        let moments = self.optimizer.m.iter_mut().zip(&mut self.optimizer.v).zip(&self.optimizer.decay);
        for ((param, grad), ((m, v), decay)) in self.decoder.params().iter().zip(&grads).zip(moments) {
            let flat = grad.flatten_all()?;
            let (storage, layout) = flat.storage_and_layout();
            let values = mat(&storage, layout)?.data;
            update(&param.weight.value().flatten_all()?, |theta| {
                crate::optim::adamw_update(theta.data, m, v, values, &factors, *decay);
                Ok(())
            })?;
        }
        self.clear_gradients()?;
        Ok(Update { grad_norm, learning_rate })
    }

    /// Forgets the gradients that were added up.
    ///
    /// # Errors
    /// Fails for parameters that are not f32 on the CPU.
    pub fn clear_gradients(&self) -> Result<(), TrainError> {
        Ok(self.decoder.params().iter().filter_map(|p| p.weight.grad()).try_for_each(zero)?)
    }
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
