//! Which settings have an effect: by algorithm, and by the settings that switch others on.
//!
//! One table; a setting that is not in it is always read. `checks.rs` makes errors of settings that were set and are
//! not read, `show.rs` leaves them out of what it writes.

use super::kinds::Algorithm::{self, Grpo, Pretrain, Sft};
use super::run_config::RunConfig;

/// The algorithms that sample completions and score them.
const SAMPLING: &[Algorithm] = &[Grpo];
/// Those with the clipped objective.
const OBJECTIVE: &[Algorithm] = &[Grpo];

/// Those that sample at all, be it to show what was learned.
const WRITING: &[Algorithm] = &[Grpo, Pretrain];
/// Those that learn from rows: all but the one that learns a text.
const ROWS: &[Algorithm] = &[Grpo, Sft];

/// A setting that is not always read.
struct Effect {
    key: &'static str,
    /// The algorithms that read it; empty: all.
    algorithms: &'static [Algorithm],
    /// Where it is read, beside the algorithm.
    condition: Option<Condition>,
}

/// A setting that decides whether another one is read.
struct Condition {
    key: &'static str,
    holds: fn(&RunConfig) -> bool,
    /// What is missing where it does not hold, as the end of a sentence.
    missing: &'static str,
}

const fn of(key: &'static str, algorithms: &'static [Algorithm]) -> Effect {
    Effect { key, algorithms, condition: None }
}

impl Effect {
    const fn with(mut self, key: &'static str, holds: fn(&RunConfig) -> bool, missing: &'static str) -> Self {
        self.condition = Some(Condition { key, holds, missing });
        self
    }
}

/// Settings of generation that are missing here are read by evaluations too.
const EFFECTS: &[Effect] = &[
    of("init", &[]).with(
        "architecture",
        |c| c.architecture.is_none(),
        "with `[architecture]`: there are no weights yet",
    ),
    of("revision", &[]).with("architecture", |c| c.architecture.is_none(), "with `[architecture]`"),
    of("eval_file", ROWS),
    of("eval_grader", ROWS),
    of("prompt_column", ROWS),
    of("answer_column", ROWS),
    of("system_prompt", ROWS),
    of("chat_template", ROWS),
    of("chat_template_kwargs", ROWS),
    of("on_bad_row", ROWS),
    of("max_prompt_length", ROWS),
    of("rewards", ROWS),
    of("num_generations", SAMPLING),
    of("temperature", WRITING),
    of("top_p", WRITING),
    of("top_k", WRITING),
    of("min_p", WRITING),
    of("repetition_penalty", WRITING),
    of("log_completions", SAMPLING),
    of("num_iterations", SAMPLING),
    of("mask_truncated_completions", SAMPLING),
    of("beta", OBJECTIVE),
    of("kl_estimator", OBJECTIVE),
    of("epsilon", OBJECTIVE),
    of("epsilon_high", OBJECTIVE),
    of("delta", OBJECTIVE),
    of("loss_type", OBJECTIVE),
    of("scale_rewards", OBJECTIVE),
    of("gamma", OBJECTIVE),
    of("completion_column", &[Sft]),
    of("completion_only_loss", &[Sft]),
    of("block_size", &[Pretrain]),
    of("validation_fraction", &[Pretrain]),
    of("num_samples", &[Pretrain]),
    of("sample_prompt", &[Pretrain]),
    of("eval_max_rows", ROWS).with("eval_file", |c| c.eval_file.is_some(), "without `eval_file`"),
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
    let condition = effect.condition.as_ref().filter(|condition| !(condition.holds)(config))?;
    Some(NoEffect { decided_by: condition.key, why: condition.missing.to_owned(), read_by: None })
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
            assert!(effect.condition.as_ref().is_none_or(|condition| is_setting(condition.key)), "{}", effect.key);
            assert!(EFFECTS[..index].iter().all(|other| other.key != effect.key), "{} twice", effect.key);
        }
    }
}
