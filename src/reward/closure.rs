//! Rewards made of closures, and a reward under another name.

use super::error::RewardError;
use super::{IsStopping, Reward, RewardInput, TokenScores};
use crate::data::Columns;
use crate::device::Compute;
use std::sync::Arc;

/// A reward made of a closure.
///
/// ```
/// use candlewick::reward::{FnReward, Reward};
/// let short = FnReward::new("short", |input| -(input.completion_ids.len() as f64));
/// assert_eq!(short.name(), "short");
/// let exact = FnReward::new("exact", |input| {
///     let answer = input.columns.text("answer").unwrap_or_default();
///     f64::from(input.completion.trim() == answer)
/// });
/// ```
pub struct FnReward<F> {
    name: String,
    score: F,
}

impl<F: Fn(&RewardInput<'_>) -> f64 + Send + Sync> FnReward<F> {
    /// A reward called `name`, whose score is what the closure returns: a finite number.
    pub fn new(name: impl Into<String>, score: F) -> Self {
        Self { name: name.into(), score }
    }
}

impl<F: Fn(&RewardInput<'_>) -> f64 + Send + Sync> Reward for FnReward<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(Some((self.score)(input)))
    }
}

/// A token-level reward made of a closure. The completion as a whole gets no score from it.
///
/// ```
/// use candlewick::reward::{Reward, TokenFnReward, TokenScores};
/// // A step reward at the last token of each line (id 198 ends a line), nothing at the others.
/// let steps = TokenFnReward::new("steps", |input| TokenScores {
///     values: input.completion_ids.iter().map(|id| (*id == 198).then_some(1.0)).collect(),
///     keep: Vec::new(),
/// });
/// assert_eq!(steps.name(), "steps");
/// ```
pub struct TokenFnReward<F> {
    name: String,
    scores: F,
}

impl<F: Fn(&RewardInput<'_>) -> TokenScores + Send + Sync> TokenFnReward<F> {
    /// A reward called `name`, whose token scores are what the closure returns.
    pub fn new(name: impl Into<String>, scores: F) -> Self {
        Self { name: name.into(), scores }
    }
}

impl<F: Fn(&RewardInput<'_>) -> TokenScores + Send + Sync> Reward for TokenFnReward<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, _: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(None)
    }

    fn token_scores(&self, input: &RewardInput<'_>) -> Result<Option<TokenScores>, RewardError> {
        Ok(Some((self.scores)(input)))
    }
}

/// A reward under another name, so that one kind can occur twice.
pub struct Labelled {
    label: String,
    reward: Arc<dyn Reward>,
}

impl Labelled {
    /// `reward`, called `label` in metrics and messages.
    pub fn new(label: impl Into<String>, reward: Arc<dyn Reward>) -> Self {
        Self { label: label.into(), reward }
    }

    fn relabel(&self, error: RewardError) -> RewardError {
        match error {
            RewardError::Failed { line, reason, .. } => {
                RewardError::Failed { reward: self.label.clone(), line, reason }
            }
            other => other,
        }
    }
}

impl Reward for Labelled {
    fn name(&self) -> &str {
        &self.label
    }

    fn check(&self) -> Result<(), RewardError> {
        self.reward.check().map_err(|error| self.relabel(error))
    }

    fn prepare(&self, compute: &Compute) -> Result<(), RewardError> {
        self.reward.prepare(compute).map_err(|error| self.relabel(error))
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        self.reward.score(input).map_err(|error| self.relabel(error))
    }

    fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        self.reward.score_batch(inputs).map_err(|error| self.relabel(error))
    }

    fn is_external(&self) -> bool {
        self.reward.is_external()
    }

    fn start(&self, is_stopping: &IsStopping) -> Result<(), RewardError> {
        self.reward.start(is_stopping).map_err(|error| self.relabel(error))
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        self.reward.check_row(columns)
    }

    fn token_scores(&self, input: &RewardInput<'_>) -> Result<Option<TokenScores>, RewardError> {
        self.reward.token_scores(input).map_err(|error| self.relabel(error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::input;
    use super::super::{ExactMatch, WeightedRewards};
    use super::*;

    #[test]
    fn a_label_is_the_name_everywhere() {
        let reward = Labelled::new("answer", Arc::new(ExactMatch::default()));
        let rewards = WeightedRewards::single(reward);
        assert_eq!(rewards.names().collect::<Vec<_>>(), ["answer"]);
        let error = rewards.score(&input("1", &[], &Columns::new())).unwrap_err();
        assert!(error.to_string().starts_with("the reward `answer` failed"), "{error}");
        let scored = rewards.score(&input("1", &[], &Columns::from_iter([("answer", "1")]))).unwrap();
        assert_eq!(scored.total, Some(1.0));
    }
}
