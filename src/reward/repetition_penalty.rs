//! A cost of saying the same again.

use super::error::RewardError;
use super::{Reward, RewardInput};
use std::collections::HashSet;

/// The reward `repetition_penalty`: the share of repeated n-grams of token ids times `max_penalty` (arXiv:2502.03373,
/// appendix C.2; TRL's `get_repetition_penalty_reward`):
/// `(1 - unique n-grams / n-grams) * max_penalty`, and 0 where the completion is shorter than an n-gram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepetitionPenalty {
    /// Tokens of an n-gram, 1 or more. Default 3.
    pub ngram_size: usize,
    /// What a completion that only repeats itself comes near to, at most 0. Default -1.
    pub max_penalty: f64,
}

impl Default for RepetitionPenalty {
    fn default() -> Self {
        Self { ngram_size: 3, max_penalty: -1.0 }
    }
}

impl RepetitionPenalty {
    /// The score of these token ids: from `max_penalty` to 0.
    #[must_use]
    pub fn compute(&self, completion_ids: &[u32]) -> f64 {
        let ngrams = completion_ids.windows(self.ngram_size.max(1));
        let (total, unique) = (ngrams.len(), ngrams.collect::<HashSet<_>>().len());
        // Nothing repeated is 0, not minus 0.
        if unique == total { 0.0 } else { (1.0 - unique as f64 / total as f64) * self.max_penalty }
    }
}

impl Reward for RepetitionPenalty {
    fn name(&self) -> &'static str {
        "repetition_penalty"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some(self.compute(input.completion_ids)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::score_of_ids;
    use super::*;

    #[test]
    fn repeated_ngrams_cost_by_their_share() {
        let of = |ngram_size, max_penalty, completions: &[&[u32]]| -> Vec<f64> {
            let reward = RepetitionPenalty { ngram_size, max_penalty };
            completions.iter().map(|ids| score_of_ids(&reward, ids)).collect()
        };
        assert_eq!(of(2, -1.0, &[&[1, 2, 3, 4], &[5, 5, 5, 5, 5]]), [0.0, -0.75]);
        assert_eq!(of(2, -2.0, &[&[1, 2, 1, 2, 1]]), [-1.0]);
        let short = of(3, -1.0, &[&[], &[1], &[1, 1]]);
        assert_eq!(short, [0.0; 3]);
        assert!(short.iter().all(|score| score.is_sign_positive()));
    }
}
