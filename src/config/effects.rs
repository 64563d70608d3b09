//! Which settings have an effect: by algorithm, and by the settings that switch others on.
//!
//! One table; a setting that is not in it is always read. `checks.rs` makes errors of settings that were set and are
//! not read, `show.rs` leaves them out of what it writes.

use super::kinds::Algorithm::{self, Dpo, Grpo, Pretrain, Raft, ReinforcePlusPlus, Remax, Reward, Rloo, Sft};
use super::kinds::{DpoLossType, DpoPairs, ImportanceSamplingLevel, KlEstimator, LossType};
use super::run_config::RunConfig;

/// The algorithms that reinforce sampled completions.
const REINFORCED: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft];
/// Those that sample completions and score them, dpo only where its pairs are sampled.
const SAMPLING: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo];
/// Those whose objective is what the settings make it.
const FREE: &[Algorithm] = &[Grpo, Remax, ReinforcePlusPlus];
/// Those that clip the probability ratio and know a KL divergence.
const CLIPPED: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus];
/// Those that hold the policy to a reference.
const HELD: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Dpo];

/// Those that compare the completions of a prompt with each other.
const GROUPED: &[Algorithm] = &[Grpo, Rloo, ReinforcePlusPlus];

/// Those that sample at all, be it to show what was learned.
const WRITING: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Pretrain];
/// Those that learn from rows: all but the one that learns a text.
const ROWS: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Reward, Sft];
/// Those that learn from rows and grade what the model completes.
const GRADED: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Sft];
/// Those whose models write texts.
const TEXTUAL: &[Algorithm] = &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Sft, Pretrain];

/// A setting that is not always read.
struct Effect {
    key: &'static str,
    /// The algorithms that read it; empty: all.
    algorithms: &'static [Algorithm],
    /// Where it is read, beside the algorithm.
    conditions: &'static [Condition],
}

/// A setting that decides whether another one is read.
struct Condition {
    key: &'static str,
    holds: fn(&RunConfig) -> bool,
    /// What it is where it does not hold, as the end of a sentence.
    otherwise: &'static str,
}

const fn of(key: &'static str, algorithms: &'static [Algorithm]) -> Effect {
    Effect { key, algorithms, conditions: &[] }
}

impl Effect {
    const fn only(mut self, conditions: &'static [Condition]) -> Self {
        self.conditions = conditions;
        self
    }
}

const HAS_RATIO: Condition = Condition {
    key: "importance_sampling_level",
    holds: |c| c.importance_sampling_level != ImportanceSamplingLevel::None,
    otherwise: "with `importance_sampling_level = \"none\"`",
};
const IS_NOT_SAPO: Condition =
    Condition { key: "loss_type", holds: |c| c.loss_type != LossType::Sapo, otherwise: "with `loss_type = \"sapo\"`" };
const IS_NOT_CISPO: Condition = Condition {
    key: "loss_type",
    holds: |c| c.loss_type != LossType::Cispo,
    otherwise: "with `loss_type = \"cispo\"`",
};
const IS_SAPO: Condition = Condition {
    key: "loss_type",
    holds: |c| c.loss_type == LossType::Sapo,
    otherwise: "without `loss_type = \"sapo\"`",
};
const IS_K3: Condition = Condition {
    key: "kl_estimator",
    holds: |c| c.kl_estimator == KlEstimator::K3,
    otherwise: "without `kl_estimator = \"k3\"`",
};
const HAS_KL: Condition = Condition {
    key: "beta",
    holds: |c| c.resolved_beta() > 0.0,
    otherwise: "where `beta` is 0: there is no KL divergence",
};
const IS_SYNCED: Condition =
    Condition { key: "sync_ref_model", holds: |c| c.sync_ref_model, otherwise: "without `sync_ref_model = true`" };
const IS_DYNAMIC: Condition = Condition {
    key: "dynamic_sampling",
    holds: |c| c.dynamic_sampling,
    otherwise: "without `dynamic_sampling = true`",
};
const HAS_WEIGHTS: Condition = Condition {
    key: "architecture",
    holds: |c| c.architecture.is_none(),
    otherwise: "with `[architecture]`: there are no weights yet",
};
const IS_PUSHED: Condition =
    Condition { key: "push_to_hub", holds: |c| c.push_to_hub, otherwise: "without `push_to_hub = true`" };
const HAS_EVALUATION: Condition = Condition {
    key: "eval_file",
    holds: RunConfig::has_eval_rows,
    otherwise: "without `eval_file` or `dataset_test_split`",
};
const HAS_COMPARISON: Condition = Condition {
    key: "eval_file",
    holds: |c| c.algorithm == Pretrain || c.has_eval_rows(),
    otherwise: "without `eval_file` or `dataset_test_split`",
};
const HAS_VALIDATION: Condition = Condition {
    key: "validation_fraction",
    holds: |c| c.algorithm != Pretrain || c.validation_fraction > 0.0,
    otherwise: "where `validation_fraction` is 0",
};
const HAS_BRIDGE: Condition = Condition {
    key: "report_to",
    holds: |c| reports_to(c, &["wandb", "trackio"]),
    otherwise: "without `wandb` or `trackio` in `report_to`",
};
const HAS_NAMED_TRACKER: Condition = Condition {
    key: "report_to",
    holds: |c| reports_to(c, &["tensorboard", "wandb", "trackio"]),
    otherwise: "without `tensorboard`, `wandb` or `trackio` in `report_to`",
};
const HAS_DATASET: Condition =
    Condition { key: "dataset_name", holds: |c| c.dataset_name.is_some(), otherwise: "without `dataset_name`" };
const HAS_NO_FILE: Condition =
    Condition { key: "train_file", holds: |c| c.train_file.is_empty(), otherwise: "with `train_file`" };
const HAS_NO_MIX: Condition =
    Condition { key: "train_mix", holds: |c| c.train_mix.is_empty(), otherwise: "with `[[train_mix]]`" };

const HAS_NO_TEMPLATE: Condition = Condition {
    key: "prompt_template",
    holds: |c| c.prompt_template.is_none(),
    otherwise: "with `prompt_template`, which names the columns itself",
};

const SAMPLES: Condition = Condition {
    key: "dpo_pairs",
    holds: |c| c.algorithm != Dpo || c.samples_completions(),
    otherwise: "without `dpo_pairs = \"sampled\"`",
};
const SCORES: Condition = Condition {
    key: "dpo_pairs",
    holds: |c| c.algorithm != Dpo || c.samples_completions() || c.has_eval_rows(),
    otherwise: "without `dpo_pairs = \"sampled\"` or an `eval_file`",
};
const READS_PAIRS: Condition = Condition {
    key: "dpo_pairs",
    holds: |c| c.dpo_pairs == DpoPairs::File,
    otherwise: "with `dpo_pairs = \"sampled\"`",
};
const HAS_LABELS: Condition = Condition {
    key: "dpo_loss_type",
    holds: |c| matches!(c.dpo_loss_type, DpoLossType::Sigmoid | DpoLossType::SigmoidNorm),
    otherwise: "without `dpo_loss_type = \"sigmoid\"` or `\"sigmoid_norm\"`",
};

fn reports_to(config: &RunConfig, trackers: &[&str]) -> bool {
    config.report_to.iter().any(|name| trackers.contains(&name.as_str()))
}

/// Settings of generation that are missing here are read by evaluations too.
const EFFECTS: &[Effect] = &[
    of("init", &[]).only(&[HAS_WEIGHTS]),
    of("revision", &[]).only(&[HAS_WEIGHTS]),
    of("train_file", &[]).only(&[HAS_NO_MIX]),
    of("eval_file", ROWS),
    of("eval_grader", GRADED),
    of("dataset_name", ROWS),
    of("dataset_config", ROWS).only(&[HAS_DATASET]),
    of("dataset_revision", ROWS).only(&[HAS_DATASET]),
    of("dataset_train_split", ROWS).only(&[HAS_DATASET, HAS_NO_FILE, HAS_NO_MIX]),
    of("dataset_test_split", ROWS).only(&[HAS_DATASET]),
    of("train_mix", ROWS),
    of("prompt_column", ROWS).only(&[HAS_NO_TEMPLATE]),
    of("prompt_template", ROWS),
    of("answer_column", GRADED),
    of("answer_regex", GRADED),
    of("system_prompt", ROWS),
    of("chat_template", ROWS),
    of("chat_template_kwargs", ROWS),
    of("on_bad_row", ROWS),
    of("max_prompt_length", ROWS),
    of("rewards", GRADED).only(&[SCORES]),
    of("stop", TEXTUAL),
    of("rollout_slots", TEXTUAL),
    of("num_generations", SAMPLING).only(&[SAMPLES]),
    of("temperature", WRITING).only(&[SAMPLES]),
    of("top_p", WRITING).only(&[SAMPLES]),
    of("top_k", WRITING).only(&[SAMPLES]),
    of("min_p", WRITING).only(&[SAMPLES]),
    of("repetition_penalty", WRITING).only(&[SAMPLES]),
    of("log_completions", SAMPLING).only(&[SAMPLES]),
    of("num_iterations", REINFORCED),
    of("mask_truncated_completions", REINFORCED),
    of("dynamic_sampling", GROUPED),
    of("max_sampling_rounds", GROUPED).only(&[IS_DYNAMIC]),
    of("beta", HELD),
    of("kl_estimator", FREE).only(&[HAS_KL]),
    of("use_bias_correction_kl", FREE).only(&[HAS_KL, HAS_RATIO, IS_K3]),
    of("sync_ref_model", CLIPPED),
    of("ref_model_mixup_alpha", CLIPPED).only(&[IS_SYNCED]),
    of("ref_model_sync_steps", CLIPPED).only(&[IS_SYNCED]),
    of("importance_sampling_level", FREE),
    of("epsilon", CLIPPED).only(&[HAS_RATIO, IS_NOT_SAPO, IS_NOT_CISPO]),
    of("epsilon_high", CLIPPED).only(&[HAS_RATIO, IS_NOT_SAPO]),
    of("delta", FREE).only(&[HAS_RATIO, IS_NOT_SAPO, IS_NOT_CISPO]),
    of("loss_type", FREE),
    of("sapo_temperature_pos", FREE).only(&[IS_SAPO]),
    of("sapo_temperature_neg", FREE).only(&[IS_SAPO]),
    of("scale_rewards", &[Grpo]),
    of("gamma", FREE),
    of("top_entropy_quantile", FREE),
    of("entropy_coef", CLIPPED),
    of("raft_min_reward", &[Raft]),
    of("dpo_pairs", &[Dpo]),
    of("dpo_loss_type", &[Dpo]),
    of("label_smoothing", &[Dpo]).only(&[HAS_LABELS]),
    of("center_rewards_coefficient", &[Reward]),
    of("chosen_column", &[Dpo, Reward]).only(&[READS_PAIRS]),
    of("rejected_column", &[Dpo, Reward]).only(&[READS_PAIRS]),
    of("completion_column", &[Sft]),
    of("completion_only_loss", &[Sft]),
    of("block_size", &[Pretrain]),
    of("validation_fraction", &[Pretrain]),
    of("num_samples", &[Pretrain]),
    of("sample_prompt", &[Pretrain]),
    of("eval_max_rows", ROWS).only(&[HAS_EVALUATION]),
    of("eval_on_start", &[]).only(&[HAS_COMPARISON, HAS_VALIDATION]),
    of("python", &[]).only(&[HAS_BRIDGE]),
    of("project", &[]).only(&[HAS_BRIDGE]),
    of("run_name", &[]).only(&[HAS_NAMED_TRACKER]),
    of("hub_model_id", &[]).only(&[IS_PUSHED]),
    of("hub_private_repo", &[]).only(&[IS_PUSHED]),
];

/// Why a setting is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoEffect {
    /// The setting that decides it.
    pub decided_by: &'static str,
    /// The end of the sentence "`x` has no effect ...".
    pub why: String,
    /// The algorithms that read it, where this one does not.
    pub read_by: Option<String>,
}

/// Why `key` has no effect in this configuration; `None` where it has one.
pub(super) fn no_effect(config: &RunConfig, key: &str) -> Option<NoEffect> {
    let effect = EFFECTS.iter().find(|effect| effect.key == key)?;
    if !(effect.algorithms.is_empty() || effect.algorithms.contains(&config.algorithm)) {
        let why = format!("with `algorithm = \"{}\"`", config.algorithm.name());
        let names: Vec<&str> = effect.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        return Some(NoEffect { decided_by: "algorithm", why, read_by: Some(names.join(", ")) });
    }
    let condition = effect.conditions.iter().find(|condition| !(condition.holds)(config))?;
    Some(NoEffect { decided_by: condition.key, why: condition.otherwise.to_owned(), read_by: None })
}

/// The keys of the table.
pub(super) fn conditional_keys() -> impl Iterator<Item = &'static str> {
    EFFECTS.iter().map(|effect| effect.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::names::RUN_FIELDS;

    #[test]
    fn the_table_names_settings_that_exist_once_each() {
        let is_setting = |key: &str| RUN_FIELDS.iter().any(|field| field.name == key);
        for (index, effect) in EFFECTS.iter().enumerate() {
            assert!(is_setting(effect.key), "{}", effect.key);
            assert!(effect.conditions.iter().all(|condition| is_setting(condition.key)), "{}", effect.key);
            assert!(EFFECTS[..index].iter().all(|other| other.key != effect.key), "{} twice", effect.key);
        }
    }

    /// Every setting, and the algorithms that read it in a configuration that says nothing else but what it depends on.
    const READ_BY: &[(&[Algorithm], &[&str])] = &[
        (
            &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Reward, Sft, Pretrain],
            &[
                "algorithm",
                "output_dir",
                "resume",
                "seed",
                "device",
                "dtype",
                "threads",
                "offline",
                "model",
                "revision",
                "init",
                "save_dtype",
                "architecture",
                "lora",
                "train_file",
                "shuffle",
                "max_completion_length",
                "learning_rate",
                "lr_scheduler_type",
                "warmup_steps",
                "adam_beta1",
                "adam_beta2",
                "adam_epsilon",
                "weight_decay",
                "max_grad_norm",
                "prompts_per_step",
                "gradient_accumulation_steps",
                "max_tokens_per_micro_batch",
                "gradient_checkpointing",
                "num_train_epochs",
                "max_steps",
                "eval_steps",
                "eval_on_start",
                "logging_steps",
                "save_steps",
                "save_total_limit",
                "report_to",
                "push_to_hub",
                "hub_model_id",
                "hub_private_repo",
                "python",
                "project",
                "run_name",
            ],
        ),
        (
            &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Reward, Sft],
            &[
                "eval_file",
                "dataset_name",
                "dataset_config",
                "dataset_revision",
                "dataset_train_split",
                "dataset_test_split",
                "train_mix",
                "eval_max_rows",
                "prompt_column",
                "prompt_template",
                "system_prompt",
                "chat_template",
                "chat_template_kwargs",
                "on_bad_row",
                "max_prompt_length",
            ],
        ),
        (
            &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Sft],
            &["eval_grader", "answer_column", "answer_regex", "rewards"],
        ),
        (&[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Sft, Pretrain], &["stop", "rollout_slots"]),
        (
            &[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo, Pretrain],
            &["temperature", "top_p", "top_k", "min_p", "repetition_penalty"],
        ),
        (&[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft, Dpo], &["num_generations", "log_completions"]),
        (&[Grpo, Rloo, Remax, ReinforcePlusPlus, Raft], &["num_iterations", "mask_truncated_completions"]),
        (&[Grpo, Rloo, Remax, ReinforcePlusPlus, Dpo], &["beta"]),
        (&[Dpo], &["dpo_pairs", "dpo_loss_type", "label_smoothing"]),
        (&[Dpo, Reward], &["chosen_column", "rejected_column"]),
        (&[Reward], &["center_rewards_coefficient"]),
        (
            &[Grpo, Rloo, Remax, ReinforcePlusPlus],
            &[
                "epsilon",
                "epsilon_high",
                "entropy_coef",
                "sync_ref_model",
                "ref_model_mixup_alpha",
                "ref_model_sync_steps",
            ],
        ),
        (
            &[Grpo, Remax, ReinforcePlusPlus],
            &[
                "kl_estimator",
                "use_bias_correction_kl",
                "importance_sampling_level",
                "loss_type",
                "delta",
                "gamma",
                "sapo_temperature_pos",
                "sapo_temperature_neg",
                "top_entropy_quantile",
            ],
        ),
        (&[Grpo, Rloo, ReinforcePlusPlus], &["dynamic_sampling", "max_sampling_rounds"]),
        (&[Grpo], &["scale_rewards"]),
        (&[Raft], &["raft_min_reward"]),
        (&[Sft], &["completion_column", "completion_only_loss"]),
        (&[Pretrain], &["block_size", "validation_fraction", "num_samples", "sample_prompt"]),
    ];

    #[test]
    fn every_setting_says_which_algorithms_read_it() {
        for field in RUN_FIELDS.iter() {
            let mut rows = READ_BY.iter().filter(|(_, keys)| keys.contains(&field.name.as_str()));
            let (readers, _) = rows.next().unwrap_or_else(|| panic!("{} is not in the table", field.name));
            assert!(rows.next().is_none(), "{} twice", field.name);
            for algorithm in Algorithm::ALL {
                // What settings depend on is as they need it.
                let config = RunConfig {
                    algorithm,
                    dpo_pairs: if matches!(field.name.as_str(), "chosen_column" | "rejected_column") {
                        DpoPairs::File
                    } else {
                        DpoPairs::Sampled
                    },
                    eval_file: Some("e".into()),
                    dataset_name: Some("d".into()),
                    beta: Some(0.04),
                    sync_ref_model: true,
                    dynamic_sampling: true,
                    push_to_hub: true,
                    report_to: vec!["wandb".into()],
                    loss_type: if field.name.starts_with("sapo") { LossType::Sapo } else { LossType::Dapo },
                    ..RunConfig::default()
                };
                let is_read = no_effect(&config, &field.name).is_none();
                assert_eq!(is_read, readers.contains(&algorithm), "{} with {}", field.name, algorithm.name());
            }
        }
    }
}
