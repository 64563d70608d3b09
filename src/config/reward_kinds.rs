//! The rewards that a `[[rewards]]` table can name: their keys, their values, and the making of them.
//!
//! [`KINDS`] has an entry for each. What a reward computes is the business of `reward`.

use super::outside_rewards::{command, judge};
use super::reward_config::RewardConfig;
use super::run_config::RunConfig;
use crate::reward::{
    DEFAULT_FORMAT, ExactMatch, Format, LastInteger, Length, LetterCount, ModelReward, ModelRewardConfig, PerDigit,
    RegexReward, RelativeDistance, RepetitionPenalty, Reward, RewardError, SoftOverlong, Uppercase,
};
use std::sync::Arc;

pub(super) type Made = Result<Arc<dyn Reward>, Fault>;

/// One kind of reward.
pub(super) struct Kind {
    /// Its name in a table, and in metrics where there is no label.
    pub name: &'static str,
    /// What the score is, for the reference page.
    pub score: &'static str,
    /// The keys it reads beside `name`, `label` and `weight`.
    pub keys: &'static [&'static str],
    pub make: fn(&RewardConfig, &RunConfig) -> Made,
}

/// Every kind, in the order of the reference page.
pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "last_integer",
        score: "`correct_reward` where the last integer of the completion is that of the answer column, \
                else `wrong_reward`",
        keys: &["correct_reward", "wrong_reward"],
        make: |table, config| {
            let (answer_column, (correct_reward, wrong_reward)) = (config.answer_column.clone(), outcomes(table));
            Ok(Arc::new(LastInteger { answer_column, correct_reward, wrong_reward }))
        },
    },
    Kind {
        name: "exact_match",
        score: "`correct_reward` where the completion is the text of the answer column, white space at both ends \
                aside, else `wrong_reward`",
        keys: &["correct_reward", "wrong_reward"],
        make: |table, config| {
            let (answer_column, (correct_reward, wrong_reward)) = (config.answer_column.clone(), outcomes(table));
            Ok(Arc::new(ExactMatch { answer_column, correct_reward, wrong_reward }))
        },
    },
    Kind {
        name: "per_digit",
        score: "characters that stand where the answer has them, counted from the start, over the length of the \
                longer text, white space at both ends aside: 0 to 1",
        keys: &[],
        make: |_, config| Ok(Arc::new(PerDigit { answer_column: config.answer_column.clone() })),
    },
    Kind {
        name: "relative_distance",
        score: "1 - abs(x - y) / max(abs(x), abs(y)) of the last integers of completion and answer: 1 where they are \
                equal, 0 to 1 where they have the same sign, down to -1 where not; 0 where there is no integer",
        keys: &[],
        make: |_, config| Ok(Arc::new(RelativeDistance { answer_column: config.answer_column.clone() })),
    },
    Kind {
        name: "format",
        score: "`correct_reward` where `pattern` matches the whole completion, else `wrong_reward`",
        keys: &["pattern", "correct_reward", "wrong_reward"],
        make: |table, _| {
            let mut format = Format::new(table.pattern.as_deref().unwrap_or(DEFAULT_FORMAT)).map_err(bad_pattern)?;
            (format.correct_reward, format.wrong_reward) = outcomes(table);
            Ok(Arc::new(format))
        },
    },
    Kind {
        name: "regex",
        score: "`correct_reward` where `pattern` matches anywhere in the completion, else `wrong_reward`",
        keys: &["pattern", "correct_reward", "wrong_reward"],
        make: |table, _| {
            let mut regex =
                RegexReward::new(required(table.pattern.as_ref(), "pattern", table)?).map_err(bad_pattern)?;
            (regex.correct_reward, regex.wrong_reward) = outcomes(table);
            Ok(Arc::new(regex))
        },
    },
    Kind {
        name: "uppercase",
        score: "uppercase letters over letters: 0 to 1; 0 where there are no letters",
        keys: &[],
        make: |_, _| Ok(Arc::new(Uppercase)),
    },
    Kind {
        name: "letter_count",
        score: "how often `letter` occurs; with `normalize` its share of all characters, 0 to 1",
        keys: &["letter", "normalize"],
        make: |table, _| {
            let mut characters = required(table.letter.as_ref(), "letter", table)?.chars();
            let (Some(letter), None) = (characters.next(), characters.next()) else {
                return Err(Fault::new("letter", "`letter` must be one character"));
            };
            Ok(Arc::new(LetterCount { letter, normalize: table.normalize.unwrap_or(false) }))
        },
    },
    Kind {
        name: "length",
        score: "minus the tokens by which the completion is longer or shorter than `target_length`",
        keys: &["target_length"],
        make: |table, _| Ok(Arc::new(Length { target_length: table.target_length.unwrap_or(0) })),
    },
    Kind {
        name: "repetition_penalty",
        score: "the share of n-grams of `ngram_size` tokens that are repeated, times `max_penalty`",
        keys: &["ngram_size", "max_penalty"],
        make: |table, _| {
            let default = RepetitionPenalty::default();
            let ngram_size = table.ngram_size.unwrap_or(default.ngram_size);
            let max_penalty = table.max_penalty.unwrap_or(default.max_penalty);
            if ngram_size == 0 {
                return Err(Fault::new("ngram_size", "`ngram_size` must be 1 or more, not 0"));
            }
            if max_penalty > 0.0 {
                let message = format!("`max_penalty` must be 0 or less, not {max_penalty}");
                return Err(Fault::new("max_penalty", message));
            }
            Ok(Arc::new(RepetitionPenalty { ngram_size, max_penalty }))
        },
    },
    Kind {
        name: "soft_overlong",
        score: "0 up to `max_completion_len` - `soft_punish_cache` tokens, then down to -1 at `max_completion_len` and \
                beyond (DAPO)",
        keys: &["max_completion_len", "soft_punish_cache"],
        make: |table, config| {
            let max_completion_len = table.max_completion_len.unwrap_or(config.max_completion_length);
            let soft_punish_cache = *required(table.soft_punish_cache.as_ref(), "soft_punish_cache", table)?;
            if soft_punish_cache > max_completion_len {
                let message = format!(
                    "`soft_punish_cache` ({soft_punish_cache}) is more than the {max_completion_len} tokens that a \
                     completion may have"
                );
                return Err(Fault::new("soft_punish_cache", message));
            }
            Ok(Arc::new(SoftOverlong { max_completion_len, soft_punish_cache }))
        },
    },
    Kind {
        name: "command",
        score: "what the program `command` says, which is kept running and gets a line of JSON for each completion",
        keys: &["command", "timeout_secs", "max_restarts"],
        make: |table, _| command(table),
    },
    Kind {
        name: "model",
        score: "what a reward model gives to prompt and completion: any number, the higher the better; of a text beyond its \
                context it reads the end",
        keys: &["model", "revision"],
        make: |table, config| {
            let model = required(table.model.as_ref(), "model", table)?.clone();
            if model.trim().is_empty() {
                return Err(Fault::new("model", "`model` is empty").help("name a folder or a Hub id (`org/name`)"));
            }
            Ok(Arc::new(ModelReward::new(ModelRewardConfig {
                model,
                revision: table.revision.clone(),
                offline: config.offline,
                chat_template_kwargs: config.chat_template_kwargs.clone(),
                max_tokens: config.max_tokens_per_micro_batch,
            })))
        },
    },
    Kind {
        name: "judge",
        score: "what the model `judge_model` at `base_url` says to `prompt_template`, as it is or from 0 to 1",
        keys: &[
            "base_url",
            "judge_model",
            "prompt_template",
            "score_pattern",
            "score_key",
            "min_score",
            "max_score",
            "temperature",
            "concurrency",
            "timeout_secs",
            "max_retries",
            "api_key_env",
            "on_failure",
        ],
        make: |table, _| judge(table),
    },
];

/// What is wrong with one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The key to blame; it need not be there.
    pub key: &'static str,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Fault {
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into(), help: None }
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

fn outcomes(table: &RewardConfig) -> (f64, f64) {
    (table.correct_reward.unwrap_or(1.0), table.wrong_reward.unwrap_or(0.0))
}

pub(super) fn required<'a, T>(value: Option<&'a T>, key: &str, table: &RewardConfig) -> Result<&'a T, Fault> {
    value.ok_or_else(|| Fault::new("name", format!("the reward `{}` needs `{key}`", table.name)))
}

fn bad_pattern(error: RewardError) -> Fault {
    let message = match error {
        RewardError::Pattern { reason, .. } => format!("`pattern` is no regular expression: {reason}"),
        other => other.to_string(),
    };
    Fault::new("pattern", message).help("in TOML, 'single quotes' leave backslashes alone")
}
