//! Settings of the algorithms that do not fit together.

use super::checks::Problem;
use super::effects::no_effect;
use super::kinds::{Algorithm, ImportanceSamplingLevel, LossType};
use super::run_config::RunConfig;

/// Every rule between settings of the algorithms that the configuration breaks.
pub(super) fn contradictions(config: &RunConfig) -> Vec<Problem> {
    let mut found: Vec<Problem> = group_of_one(config).into_iter().chain(dpo_without_beta(config)).collect();
    let has_effect = |key: &str| no_effect(config, key).is_none();
    if has_effect("epsilon_high") {
        found.extend(clip_bounds(config));
    }
    if has_effect("sync_ref_model") && config.sync_ref_model && config.resolved_beta() == 0.0 {
        let message = "`sync_ref_model` needs `beta` above 0: there is no reference model that could follow the policy";
        let help = "set beta, 0.04 say, or leave sync_ref_model out";
        found.push(Problem::new(&["sync_ref_model", "beta"], message).help(help));
    }
    if has_effect("loss_type")
        && matches!(config.loss_type, LossType::Cispo | LossType::Sapo)
        && config.importance_sampling_level == ImportanceSamplingLevel::None
    {
        let message = "`loss_type` must not be `cispo` or `sapo` with `importance_sampling_level = \"none\"`";
        let help = "they differ from the others in what they do with the ratio, and there is none";
        found.push(Problem::new(&["loss_type", "importance_sampling_level"], message).help(help));
    }
    found
}

/// A group of one where something is compared within the group.
fn group_of_one(config: &RunConfig) -> Option<Problem> {
    let reason = match config.algorithm {
        _ if config.num_generations != 1 => return None,
        Algorithm::Grpo | Algorithm::Rloo | Algorithm::ReinforcePlusPlus => {
            "rewards are compared within a group: a group of one teaches nothing; `remax` compares with a greedy completion"
        }
        Algorithm::Raft => "the best completion of a group is learned: a group of one has no worse one",
        Algorithm::Dpo if config.samples_completions() => {
            "the best completion of a group is compared with its worst: a group of one has no pair"
        }
        Algorithm::Dpo | Algorithm::Remax | Algorithm::Reward | Algorithm::Sft | Algorithm::Pretrain => return None,
    };
    let name = config.algorithm.name();
    let message = format!("`num_generations` must be 2 or more with `algorithm = \"{name}\"`, not 1");
    Some(Problem::new(&["num_generations", "algorithm"], message).help(reason))
}

/// Without beta the loss of a pair says nothing, or divides by 0.
fn dpo_without_beta(config: &RunConfig) -> Option<Problem> {
    if config.algorithm != Algorithm::Dpo || config.resolved_beta() != 0.0 {
        return None;
    }
    let message = "`beta` must be above 0 with `algorithm = \"dpo\"`, not 0";
    let help = "it scales the margin between the completions of a pair: at 0 there is nothing to learn";
    Some(Problem::new(&["beta", "algorithm"], message).help(help))
}

fn clip_bounds(config: &RunConfig) -> Vec<Problem> {
    let c = config;
    let mut found = Vec::new();
    if c.loss_type == LossType::Cispo {
        if let Some(cap) = c.epsilon_high.filter(|cap| *cap < 1.0) {
            let message = format!("`epsilon_high` must be 1 or more with `loss_type = \"cispo\"`, not {cap}");
            let help = "it is the cap of the ratio itself there, not a distance from 1; 5.0 is usual";
            found.push(Problem::new(&["epsilon_high", "loss_type"], message).help(help));
        }
        return found;
    }
    if let Some(high) = c.epsilon_high.filter(|high| *high < c.epsilon) {
        let message = format!("`epsilon_high` ({high}) is below `epsilon` ({})", c.epsilon);
        found.push(Problem::new(&["epsilon_high", "epsilon"], message).help("it widens the upper clip bound"));
    }
    let upper = 1.0 + c.resolved_epsilon_high();
    if let Some(delta) = c.delta.filter(|delta| *delta > 0.0 && *delta <= upper) {
        let message = format!("`delta` ({delta}) must be above the upper clip bound 1 + epsilon_high ({upper})");
        found.push(Problem::new(&["delta", "epsilon_high", "epsilon"], message));
    }
    found
}

impl RunConfig {
    /// What is allowed but probably not meant, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.importance_sampling_level == ImportanceSamplingLevel::Sequence && self.loss_type != LossType::Grpo {
            let text = "importance_sampling_level = \"sequence\" is GSPO with loss_type = \"grpo\" only; with another \
                        loss_type completions do not weigh alike";
            found.push(text.to_owned());
        }
        found
    }
}
