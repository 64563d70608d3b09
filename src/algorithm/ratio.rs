//! The importance ratio: of each token alone, or one of the whole row that all its tokens share.
//!
//! Knows log-ratios only; what is done with the ratio belongs to `surrogate`.

use serde::{Deserialize, Serialize};

/// What the ratio between the policy and the one that made the rollout is taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSamplingLevel {
    /// Each token has a ratio of its own: `exp(logprob - old_logprob)`.
    #[default]
    Token,
    /// One ratio a row, the geometric mean of its tokens' (GSPO, arXiv:2507.18071 eq. 7); its gradient reaches every
    /// token of the row.
    Sequence,
    /// One ratio a row, the product of its tokens' (RLOO, arXiv:2402.14740). Set by the algorithm, not a word of the
    /// configuration.
    #[serde(skip)]
    SequenceSum,
    /// No ratio: the term is `-A l`, the plain policy gradient.
    None,
}

impl ImportanceSamplingLevel {
    /// Whether a row has one ratio for all its tokens.
    pub(super) fn is_of_row(self) -> bool {
        matches!(self, Self::Sequence | Self::SequenceSum)
    }

    /// The derivative of a row's log-ratio with respect to the log-prob of one of its `active` tokens. The row's
    /// log-ratio is the sum of the tokens' times this.
    pub(super) fn share(self, active: usize) -> f64 {
        if self == Self::Sequence { 1.0 / active.max(1) as f64 } else { 1.0 }
    }
}
