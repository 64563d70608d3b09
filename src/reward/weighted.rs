//! The weighted sum of several rewards.

use std::path::Path;
use std::sync::Arc;

use super::error::RewardError;
use super::{Reward, RewardInput};
use crate::data::Row;

/// Rewards with their weights: `R = sum over k of weight_k * score_k`. A clone shares the rewards.
#[derive(Clone, Default)]
pub struct WeightedRewards {
    /// Each reward with its weight, in the order of their scores.
    pub parts: Vec<(f64, Arc<dyn Reward>)>,
}

/// The scores of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The weighted sum over the rewards that gave a score; None where none did.
    pub total: Option<f64>,
    /// The score of each reward, unweighted, in the order of `WeightedRewards::parts`.
    pub parts: Vec<Option<f64>>,
}

impl WeightedRewards {
    /// One reward of weight 1.
    #[must_use]
    pub fn single(reward: impl Reward + 'static) -> Self {
        Self::default().with(1.0, reward)
    }

    /// Adds a reward.
    #[must_use]
    pub fn with(mut self, weight: f64, reward: impl Reward + 'static) -> Self {
        self.parts.push((weight, Arc::new(reward)));
        self
    }

    /// Names of the rewards, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(_, reward)| reward.name())
    }

    /// Scores a completion.
    ///
    /// # Errors
    /// A reward fails, or a score or the sum is not finite.
    pub fn score(&self, input: &RewardInput<'_>) -> Result<Scored, RewardError> {
        let mut parts = Vec::with_capacity(self.parts.len());
        let mut total = None;
        for (weight, reward) in &self.parts {
            let score = reward.score(input)?;
            if let Some(score) = score {
                if !score.is_finite() {
                    return Err(RewardError::NonFinite { reward: reward.name().to_string(), line: input.line, score });
                }
                total = Some(total.unwrap_or(0.0) + weight * score);
            }
            parts.push(score);
        }
        match total {
            Some(total) if !total.is_finite() => Err(RewardError::NonFiniteTotal { line: input.line, total }),
            total => Ok(Scored { total, parts }),
        }
    }

    /// Checks that every reward can use every row, before a run starts. `path` is the rows' file, for the message.
    ///
    /// # Errors
    /// [`RewardError::BadRow`] for the first row that a reward cannot use.
    pub fn check_rows(&self, path: &Path, rows: &[Row]) -> Result<(), RewardError> {
        for row in rows {
            for (_, reward) in &self.parts {
                reward.check_row(&row.columns).map_err(|reason| RewardError::BadRow {
                    path: path.to_path_buf(),
                    line: row.line,
                    reward: reward.name().to_string(),
                    reason,
                })?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for WeightedRewards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.parts.iter().map(|(weight, reward)| (weight, reward.name()))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::FnReward;
    use super::*;
    use crate::data::Columns;

    struct Silent;

    impl Reward for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }

        fn score(&self, _: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
            Ok(None)
        }
    }

    fn score(rewards: &WeightedRewards) -> Result<Scored, RewardError> {
        let columns = Columns::new();
        rewards.score(&RewardInput { prompt: "", completion: "ab", completion_ids: &[1], columns: &columns, line: 7 })
    }

    #[test]
    fn the_sum_leaves_out_what_has_no_score() {
        let rewards = WeightedRewards::default()
            .with(2.0, FnReward::new("length", |input| input.completion.len() as f64))
            .with(5.0, Silent)
            .with(-0.5, FnReward::new("one", |_| 1.0));
        let scored = score(&rewards).unwrap();
        assert_eq!(scored, Scored { total: Some(3.5), parts: vec![Some(2.0), None, Some(1.0)] });
        assert_eq!(score(&WeightedRewards::single(Silent)).unwrap().total, None);
        assert_eq!(rewards.names().collect::<Vec<_>>(), ["length", "silent", "one"]);
    }

    #[test]
    fn a_score_that_is_not_finite_names_reward_and_line() {
        let error = score(&WeightedRewards::single(FnReward::new("ratio", |_| f64::NAN))).unwrap_err();
        assert_eq!(error.to_string(), "the reward `ratio` gave NaN for a completion of line 7");
        let huge = WeightedRewards::default().with(1e300, FnReward::new("huge", |_| 1e300));
        assert!(matches!(score(&huge), Err(RewardError::NonFiniteTotal { .. })));
    }
}
