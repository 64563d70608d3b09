//! The objective of supervised fine-tuning: the mean negative log-likelihood of the trained tokens.

use super::{Objective, ObjectiveStats};

/// Computes one micro-batch's share of the mean negative log-likelihood over the step's trained tokens.
///
/// `loss = -sum(logprobs) / active_tokens`; the gradient of every token is `-1 / active_tokens`. The shares of the
/// micro-batches add up to the loss of the step, however it is cut.
///
/// # Shapes
/// `logprobs [N]`, nats, of the trained tokens alone; `active_tokens`: trained tokens of the whole step.
///
/// # Examples
/// ```
/// use candlewick::algorithm::compute_sft_objective;
///
/// let objective = compute_sft_objective(&[-1.0, -3.0], 2);
/// assert_eq!((objective.loss, objective.grad), (2.0, vec![-0.5, -0.5]));
/// ```
#[must_use]
pub fn compute_sft_objective(logprobs: &[f64], active_tokens: usize) -> Objective {
    let weight = 1.0 / active_tokens.max(1) as f64;
    Objective {
        loss: -logprobs.iter().sum::<f64>() * weight,
        grad: vec![-weight; logprobs.len()],
        entropy_grad: None,
        stats: ObjectiveStats { active_tokens: logprobs.len() as u64, ..ObjectiveStats::default() },
    }
}
