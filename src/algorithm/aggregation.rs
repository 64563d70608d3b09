//! Terms of all tokens -> one scalar: which denominator each loss type puts under a token's term.
//!
//! The term itself is `surrogate`'s; `cispo` and `sapo` name a term and a denominator at once, as in TRL.
//!
//! Every denominator is that of the whole optimizer step, so that cutting the step into micro-batches changes nothing;
//! `bnpo` is the exception by its own definition.

use serde::{Deserialize, Serialize};

/// How the terms of the tokens are summed up to the loss. TRL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over rows of the mean over the row's tokens (arXiv:2402.03300 eq. 3): long completions weigh less a token.
    Grpo,
    /// Mean over micro-batches of the mean over a micro-batch's tokens: depends on how the step is cut.
    Bnpo,
    /// Sum over tokens divided by the constant `B * max_completion_length` (Dr. GRPO, arXiv:2503.20783).
    DrGrpo,
    /// Mean over all active tokens of the step (DAPO, arXiv:2503.14476).
    #[default]
    Dapo,
    /// Summed up as `dapo`; the term is `-min(w, epsilon_high) A l` with a constant weight (CISPO, arXiv:2506.13585).
    Cispo,
    /// Summed up as `grpo`; a sigmoid of the ratio takes the place of the clip (SAPO, arXiv:2511.20347).
    Sapo,
    /// Mean over rows of the sum over the row's tokens: the gradient of the expected reward, long completions weigh
    /// more. TRL's `luspo` sums up alike.
    Reinforce,
}

/// The sizes of the whole optimizer step that the loss is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denominators {
    /// Rows (completions) of the step, rows that are masked out of the loss included: TRL keeps them in the mean.
    pub rows: usize,
    /// Tokens in the loss over the whole step.
    pub active_tokens: usize,
    /// Micro-batches of the step; only `bnpo` looks at it.
    pub micro_batches: usize,
}

impl LossType {
    /// The factor of each token of a row with `row_tokens` active tokens, in a micro-batch with `micro_batch_tokens`.
    pub(super) fn token_weight(
        self,
        row_tokens: usize,
        micro_batch_tokens: usize,
        max_completion_length: usize,
        denominators: &Denominators,
    ) -> f64 {
        let count = |n: usize| n.max(1) as f64;
        let denominator = match self {
            Self::Grpo | Self::Sapo => count(denominators.rows) * count(row_tokens),
            Self::Bnpo => count(denominators.micro_batches) * count(micro_batch_tokens),
            Self::DrGrpo => count(denominators.rows) * count(max_completion_length),
            Self::Dapo | Self::Cispo => count(denominators.active_tokens),
            Self::Reinforce => count(denominators.rows),
        };
        denominator.recip()
    }
}
