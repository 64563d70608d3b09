//! Rewards of a completion's length in tokens.

use super::error::RewardError;
use super::{Reward, RewardInput};

/// The reward `length`: minus the number of tokens by which a completion is longer or shorter than the target, an
/// ending EOS counted. At most 0; with the target 0 it is a cost of one a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Length {
    /// Tokens. Default 0: the shorter the better.
    pub target_length: usize,
}

impl Reward for Length {
    fn name(&self) -> &'static str {
        "length"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        // Not minus 0.
        Ok(Some(0.0 - input.completion_ids.len().abs_diff(self.target_length) as f64))
    }
}

/// The reward `soft_overlong`: a cost that grows over the last tokens that are allowed (DAPO, arXiv:2503.14476,
/// equation 13). The names of its fields are TRL's.
///
/// 0 up to `max_completion_len - soft_punish_cache` tokens, then linearly down to -1 at `max_completion_len`, and -1
/// beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftOverlong {
    /// Tokens a completion may have, `L_max`.
    pub max_completion_len: usize,
    /// The last of these tokens, which cost, `L_cache`: 0 (none) to `max_completion_len`.
    pub soft_punish_cache: usize,
}

impl SoftOverlong {
    /// The score of a completion of so many tokens, an ending EOS counted: from -1 to 0.
    #[must_use]
    pub fn compute(&self, num_tokens: usize) -> f64 {
        let (max, cache) = (self.max_completion_len as f64, self.soft_punish_cache as f64);
        let over = num_tokens as f64 - (max - cache);
        match over {
            over if over <= 0.0 => 0.0,
            over if over <= cache => -over / cache,
            _ => -1.0,
        }
    }
}

impl Reward for SoftOverlong {
    fn name(&self) -> &'static str {
        "soft_overlong"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some(self.compute(input.completion_ids.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::score_of_ids;
    use super::*;

    fn of_lengths(reward: &dyn Reward, lengths: &[usize]) -> Vec<f64> {
        lengths.iter().map(|length| score_of_ids(reward, &vec![1; *length])).collect()
    }

    #[test]
    fn length_is_the_distance_to_the_target() {
        assert_eq!(of_lengths(&Length { target_length: 5 }, &[5, 2, 9, 0]), [0.0, -3.0, -4.0, -5.0]);
        let costs = of_lengths(&Length::default(), &[0, 5]);
        assert_eq!(costs, [0.0, -5.0]);
        assert!(costs[0].is_sign_positive());
    }

    #[test]
    fn the_overlong_cost_grows_over_the_cache() {
        let of = |max_completion_len, soft_punish_cache, lengths: &[usize]| {
            of_lengths(&SoftOverlong { max_completion_len, soft_punish_cache }, lengths)
        };
        assert_eq!(of(100, 20, &[0, 80, 81, 90, 100, 101]), [0.0, 0.0, -0.05, -0.5, -1.0, -1.0]);
        assert_eq!(of(3, 0, &[3, 4]), [0.0, -1.0]);
        assert_eq!(of(4, 4, &[0, 1, 9]), [0.0, -0.25, -1.0]);
    }
}
