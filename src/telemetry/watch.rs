//! The watch over a run: a state machine that turns a few facts of each step into warnings, or stops the run.
//!
//! It sees numbers only and prints nothing. What it cannot judge from the facts of the steps it does not claim.

use std::fmt;

use crate::error::{Diagnose, Exit};

/// Steps without any difference in reward inside a group before that is worth a warning. A batch of a few prompts
/// may well be equal once or twice by chance.
const EQUAL_REWARD_STEPS: u64 = 10;

/// What the watch needs to know of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepFacts {
    /// The step, 1-based.
    pub step: u64,
    /// Completions of the step.
    pub num_completions: u64,
    /// Those that were cut by the length limit.
    pub num_truncated: u64,
    /// The length limit, in tokens.
    pub max_completion_length: usize,
    /// Groups of the step.
    pub num_groups: u64,
    /// Groups whose rewards are all equal: they teach nothing.
    pub num_equal_groups: u64,
    /// Mean reward of the step.
    pub mean_reward: f64,
    /// Why the step learned from none of its completions; `None` where it did.
    pub idle: Option<&'static str>,
}

/// Something that a person should know while the run goes on. `Display` is the whole text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// Not one completion ended by itself.
    AllTruncated {
        /// The step.
        step: u64,
        /// The length limit, in tokens.
        max_completion_length: usize,
        /// Steps in a row that were like this.
        steps: u64,
    },
    /// No group had two different rewards.
    EqualRewards {
        /// The step.
        step: u64,
        /// Steps in a row that were like this.
        steps: u64,
        /// Mean reward of the last one.
        mean_reward: f64,
    },
    /// No completion was learned from, so that no update was made.
    Idle {
        /// The step.
        step: u64,
        /// Steps in a row that were like this.
        steps: u64,
        /// Why, as a clause.
        why: &'static str,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllTruncated { step, max_completion_length, steps } => write!(
                f,
                "step {step}: EVERY completion was cut at max_completion_length = {max_completion_length} tokens \
                 (for {steps} step{}). The rewards then judge unfinished text. Raise max_completion_length, or check \
                 that the model ends its answers: its end-of-sequence token, the chat template, the stop strings.",
                plural(*steps)
            ),
            Self::EqualRewards { step, steps, mean_reward } => write!(
                f,
                "step {step}: for {steps} step{} ALL completions of each prompt got the same reward (mean \
                 {mean_reward:.3}), so there is nothing to learn from. If it is the lowest reward: look at \
                 completions.jsonl, take easier prompts, or check the answers and the reward. If it is the highest: \
                 the task is learned. Otherwise raise temperature or num_generations.",
                plural(*steps)
            ),
            Self::Idle { step, steps, why } => {
                write!(f, "step {step}: no update was made (for {steps} step{} in a row): {why}", plural(*steps))
            }
        }
    }
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// A value that must be finite is not. The run stops; the weights are those of the step before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("step {step}: {name} is {value}, so the update was not applied; the weights are those of step {}", step.saturating_sub(1))]
pub struct NonFinite {
    /// The step that could not be finished.
    pub step: u64,
    /// The metric or tensor.
    pub name: String,
    /// NaN or an infinity.
    pub value: f64,
}

impl Diagnose for NonFinite {
    fn hint(&self) -> Option<String> {
        Some(
            "lower learning_rate, set max_grad_norm, and look for extreme rewards in completions.jsonl; then resume \
             from the last checkpoint with --resume auto"
                .into(),
        )
    }

    fn exit(&self) -> Exit {
        Exit::NonFinite
    }
}

/// Counts how long something has gone wrong and says when to speak: first after `patience` steps, then each time the
/// count has doubled, so that a long run is reminded but not flooded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Streak {
    patience: u64,
    steps: u64,
    next: u64,
}

impl Streak {
    fn new(patience: u64) -> Self {
        Self { patience, steps: 0, next: patience }
    }

    fn observe(&mut self, is_bad: bool) -> Option<u64> {
        if !is_bad {
            *self = Self::new(self.patience);
            return None;
        }
        self.steps += 1;
        (self.steps == self.next).then(|| {
            self.next *= 2;
            self.steps
        })
    }
}

/// The state of the watch between steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    truncated: Streak,
    equal_rewards: Streak,
    idle: Streak,
}

impl Default for Watch {
    fn default() -> Self {
        Self { truncated: Streak::new(1), equal_rewards: Streak::new(EQUAL_REWARD_STEPS), idle: Streak::new(1) }
    }
}

impl Watch {
    /// Takes the facts of a finished step and returns what to warn of.
    pub fn observe(&mut self, facts: &StepFacts) -> Vec<Warning> {
        let StepFacts { step, max_completion_length, mean_reward, .. } = *facts;
        let all_truncated = facts.num_completions > 0 && facts.num_truncated == facts.num_completions;
        let all_equal = facts.num_groups > 0 && facts.num_equal_groups == facts.num_groups;
        let truncated = self.truncated.observe(all_truncated);
        let equal = self.equal_rewards.observe(all_equal);
        let idle = self.idle.observe(facts.idle.is_some()).zip(facts.idle);
        truncated
            .map(|steps| Warning::AllTruncated { step, max_completion_length, steps })
            .into_iter()
            .chain(equal.map(|steps| Warning::EqualRewards { step, steps, mean_reward }))
            .chain(idle.map(|(steps, why)| Warning::Idle { step, steps, why }))
            .collect()
    }

    /// Refuses a value that is NaN or infinite; called before the optimizer touches the weights.
    pub fn require_finite(step: u64, name: &str, value: f64) -> Result<(), NonFinite> {
        if value.is_finite() { Ok(()) } else { Err(NonFinite { step, name: name.to_owned(), value }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(step: u64, num_truncated: u64, num_equal_groups: u64) -> StepFacts {
        StepFacts {
            step,
            num_completions: 8,
            num_truncated,
            max_completion_length: 16,
            num_groups: 2,
            num_equal_groups,
            mean_reward: 0.25,
            idle: None,
        }
    }

    #[test]
    fn truncation_warns_at_once_then_at_doubling_counts_and_starts_again() {
        let mut watch = Watch::default();
        let spoken: Vec<u64> = (1..=9).filter(|step| !watch.observe(&facts(*step, 8, 0)).is_empty()).collect();
        assert_eq!(spoken, [1, 2, 4, 8]);
        assert!(watch.observe(&facts(10, 7, 0)).is_empty());
        let warnings = watch.observe(&facts(11, 8, 0));
        assert_eq!(warnings, [Warning::AllTruncated { step: 11, max_completion_length: 16, steps: 1 }]);
        assert!(warnings[0].to_string().contains("Raise max_completion_length"));
    }

    #[test]
    fn equal_rewards_warn_after_ten_steps_in_a_row_only() {
        let mut watch = Watch::default();
        for step in 1..=9 {
            assert!(watch.observe(&facts(step, 0, 2)).is_empty());
        }
        assert!(watch.observe(&facts(10, 0, 1)).is_empty(), "one group with a difference ends the streak");
        let steps: Vec<u64> = (11..=40).filter(|step| !watch.observe(&facts(*step, 0, 2)).is_empty()).collect();
        assert_eq!(steps, [20, 30]);
    }

    #[test]
    fn a_step_without_an_update_is_told_with_its_reason() {
        let idle = |step| StepFacts { idle: Some("nothing was kept"), ..facts(step, 0, 0) };
        let mut watch = Watch::default();
        let warnings = watch.observe(&idle(1));
        assert_eq!(warnings, [Warning::Idle { step: 1, steps: 1, why: "nothing was kept" }]);
        assert!(warnings[0].to_string().ends_with("no update was made (for 1 step in a row): nothing was kept"));
        assert!(watch.observe(&facts(2, 0, 0)).is_empty());
        let spoken: Vec<u64> = (3..=10).filter(|step| !watch.observe(&idle(*step)).is_empty()).collect();
        assert_eq!(spoken, [3, 4, 6, 10]);
    }

    #[test]
    fn an_empty_step_is_not_all_truncated() {
        let empty = StepFacts { num_completions: 0, num_groups: 0, ..facts(1, 0, 0) };
        assert!(Watch::default().observe(&empty).is_empty());
    }

    #[test]
    fn what_is_not_finite_stops_the_run() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = Watch::require_finite(7, "grad_norm", value).unwrap_err();
            assert_eq!(error.exit(), Exit::NonFinite);
            assert!(error.to_string().contains("weights are those of step 6"), "{error}");
        }
        assert!(Watch::require_finite(7, "grad_norm", 0.0).is_ok());
    }
}
