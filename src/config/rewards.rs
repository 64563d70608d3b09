//! The rewards that a `[[rewards]]` table can name: their keys, their values, and the making of them.
//!
//! [`KINDS`] has a line for each. What a reward computes is the business of `reward`; a table is checked by making the
//! reward of it, so that nothing is accepted that cannot be made.

use super::checks::Problem;
use super::diagnostic::{ConfigError, Place};
use super::kinds::EvalGrader;
use super::names::nearest;
use super::run_config::{RewardConfig, RunConfig};
use crate::reward::{
    DEFAULT_FORMAT, ExactMatch, Format, Labelled, LastInteger, Length, LetterCount, ModelReward, ModelRewardConfig,
    PerDigit, RegexReward, RelativeDistance, RepetitionPenalty, Reward, RewardError, SoftOverlong, Uppercase,
    WeightedRewards,
};
use std::sync::Arc;

type Made = Result<Arc<dyn Reward>, Fault>;

/// One kind of reward.
pub(super) struct Kind {
    /// Its name in a table, and in metrics where there is no label.
    pub name: &'static str,
    /// What the score is, for the reference page.
    pub score: &'static str,
    /// The keys it reads beside `name`, `label` and `weight`.
    pub keys: &'static [&'static str],
    make: fn(&RewardConfig, &RunConfig) -> Made,
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
];

/// What is wrong with one table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    /// The key to blame; it need not be there.
    key: &'static str,
    /// What is wrong, in one sentence.
    message: String,
    /// What to do.
    help: Option<String>,
}

impl Fault {
    fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

fn outcomes(table: &RewardConfig) -> (f64, f64) {
    (table.correct_reward.unwrap_or(1.0), table.wrong_reward.unwrap_or(0.0))
}

fn required<'a, T>(value: Option<&'a T>, key: &str, table: &RewardConfig) -> Result<&'a T, Fault> {
    value.ok_or_else(|| Fault::new("name", format!("the reward `{}` needs `{key}`", table.name)))
}

fn bad_pattern(error: RewardError) -> Fault {
    let message = match error {
        RewardError::Pattern { reason, .. } => format!("`pattern` is no regular expression: {reason}"),
        other => other.to_string(),
    };
    Fault::new("pattern", message).help("in TOML, 'single quotes' leave backslashes alone")
}

/// The keys of a table that have a value and are not read by every reward.
fn given_keys(table: &RewardConfig) -> Vec<&'static str> {
    let given = [
        ("correct_reward", table.correct_reward.is_some()),
        ("wrong_reward", table.wrong_reward.is_some()),
        ("pattern", table.pattern.is_some()),
        ("letter", table.letter.is_some()),
        ("normalize", table.normalize.is_some()),
        ("target_length", table.target_length.is_some()),
        ("ngram_size", table.ngram_size.is_some()),
        ("max_penalty", table.max_penalty.is_some()),
        ("max_completion_len", table.max_completion_len.is_some()),
        ("soft_punish_cache", table.soft_punish_cache.is_some()),
        ("model", table.model.is_some()),
        ("revision", table.revision.is_some()),
    ];
    given.into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| key).collect()
}

fn words(names: impl Iterator<Item = &'static str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The reward that a table describes, or everything that is wrong with the table.
fn make(table: &RewardConfig, config: &RunConfig) -> Result<Arc<dyn Reward>, Vec<Fault>> {
    let names = KINDS.iter().map(|kind| kind.name);
    let Some(kind) = KINDS.iter().find(|kind| kind.name == table.name) else {
        let help = match nearest(&table.name, names.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", words(names)),
        };
        return Err(vec![Fault::new("name", format!("there is no reward called `{}`", table.name)).help(help)]);
    };
    let mut found = Vec::new();
    for key in given_keys(table).into_iter().filter(|key| !kind.keys.contains(key)) {
        let help = match kind.keys {
            [] => "it has no keys of its own".to_owned(),
            keys => format!("it reads {}", words(keys.iter().copied())),
        };
        found.push(Fault::new(key, format!("`{key}` has no effect on the reward `{}`", kind.name)).help(help));
    }
    if table.label.as_ref().is_some_and(|label| label.trim().is_empty()) {
        found.push(Fault::new("label", "`label` is empty").help("name the reward, or leave it out"));
    }
    let numbers = [
        ("weight", Some(table.weight)),
        ("correct_reward", table.correct_reward),
        ("wrong_reward", table.wrong_reward),
        ("max_penalty", table.max_penalty),
    ];
    for (key, value) in numbers {
        if let Some(value) = value.filter(|value| !value.is_finite()) {
            found.push(Fault::new(key, format!("`{key}` must be finite, not {value}")));
        }
    }
    match ((kind.make)(table, config), &table.label) {
        (Ok(reward), None) if found.is_empty() => return Ok(reward),
        (Ok(reward), Some(label)) if found.is_empty() => return Ok(Arc::new(Labelled::new(label.as_str(), reward))),
        (made, _) => found.extend(made.err()),
    }
    Err(found)
}

/// The rewards of the tables that describe one, and what is wrong with the others.
fn make_all(config: &RunConfig) -> (WeightedRewards, Vec<Problem>) {
    let (mut rewards, mut found) = (WeightedRewards::default(), Vec::new());
    for (index, table) in config.rewards.iter().enumerate() {
        let name = table.called();
        let at = |key: &str| Some(format!("rewards[{index}].{key}"));
        if config.rewards[..index].iter().any(|other| other.called() == name) {
            let message = format!("two rewards are called `{name}`");
            let help = "raise the weight of one instead, or give one a `label`";
            found.push(Problem {
                spot: at(if table.label.is_some() { "label" } else { "name" }),
                ..Problem::new(&["rewards"], message).help(help)
            });
        }
        match make(table, config) {
            Ok(reward) => rewards.parts.push((table.weight, reward)),
            Err(faults) => found.extend(faults.into_iter().map(|Fault { key, message, help }| {
                let message = format!("reward {} (`{name}`): {message}", index + 1);
                Problem { spot: at(key), help, ..Problem::new(&["rewards"], message) }
            })),
        }
    }
    (rewards, found)
}

/// What is wrong with the tables of a configuration, alone and together.
pub(super) fn problems(config: &RunConfig) -> Vec<Problem> {
    let (_, mut found) = make_all(config);
    let (tables, is_reinforced) = (&config.rewards, config.samples_completions());
    if tables.is_empty() && is_reinforced {
        let help = "leave it out for the default, or add a `[[rewards]]` table";
        found.push(Problem::new(&["rewards"], "`rewards` is empty: nothing would be reinforced").help(help));
    } else if is_reinforced && tables.iter().all(|table| table.weight == 0.0) {
        found.push(Problem::new(&["rewards"], "every reward has the weight 0: nothing would be reinforced"));
    }
    if tables.is_empty() && config.eval_grader == Some(EvalGrader::Reward) {
        let message = "`eval_grader` is \"reward\", but `rewards` is empty";
        found.push(Problem::new(&["eval_grader", "rewards"], message).help("add a `[[rewards]]` table"));
    }
    found
}

impl RunConfig {
    /// Makes the rewards that the `[[rewards]]` tables describe.
    ///
    /// # Errors
    /// Everything that is wrong with the tables.
    pub fn build_rewards(&self) -> Result<WeightedRewards, ConfigError> {
        let (rewards, problems) = make_all(self);
        let diagnostics: Vec<_> = problems.into_iter().map(|problem| problem.at(|_| Place::Default)).collect();
        if diagnostics.is_empty() { Ok(rewards) } else { Err(ConfigError::Invalid { diagnostics }) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::REWARD_FIELDS;
    use super::*;
    use std::collections::BTreeSet;

    fn table(name: &str) -> RewardConfig {
        RewardConfig { name: name.to_owned(), ..RewardConfig::default() }
    }

    /// Every key of a table is read by some kind, and every kind reads keys that exist.
    #[test]
    fn the_kinds_read_the_keys_that_exist() {
        let common = ["name", "label", "weight"];
        let fields: BTreeSet<&str> = REWARD_FIELDS.iter().map(|field| field.name.as_str()).collect();
        let read: BTreeSet<&str> = KINDS.iter().flat_map(|kind| kind.keys).copied().chain(common).collect();
        assert_eq!(fields, read);
        let all_given = RewardConfig {
            correct_reward: Some(1.0),
            wrong_reward: Some(1.0),
            pattern: Some(String::new()),
            letter: Some(String::new()),
            normalize: Some(true),
            target_length: Some(1),
            ngram_size: Some(1),
            max_penalty: Some(0.0),
            max_completion_len: Some(1),
            soft_punish_cache: Some(1),
            model: Some(String::new()),
            revision: Some(String::new()),
            ..RewardConfig::default()
        };
        let given: BTreeSet<&str> = given_keys(&all_given).into_iter().chain(common).collect();
        assert_eq!(fields, given);
    }

    /// A kind's name in the table is the reward's own name, and a label takes its place.
    #[test]
    fn every_kind_makes_the_reward_of_its_name() {
        for kind in KINDS {
            let table = RewardConfig {
                pattern: (kind.name == "regex").then(|| "a".to_owned()),
                letter: (kind.name == "letter_count").then(|| "e".to_owned()),
                soft_punish_cache: (kind.name == "soft_overlong").then_some(8),
                model: (kind.name == "model").then(|| "folder".to_owned()),
                ..table(kind.name)
            };
            let labelled = RewardConfig { label: Some("other".into()), weight: 0.5, ..table.clone() };
            let config = RunConfig { rewards: vec![table, labelled], ..RunConfig::default() };
            let rewards = config.build_rewards().unwrap();
            assert_eq!(rewards.names().collect::<Vec<_>>(), [kind.name, "other"]);
        }
    }

    #[test]
    fn keys_reach_the_reward() {
        let tables = vec![
            RewardConfig { pattern: Some("a+".into()), correct_reward: Some(3.0), ..table("format") },
            RewardConfig { pattern: Some("b".into()), wrong_reward: Some(-2.0), ..table("regex") },
            RewardConfig { letter: Some("a".into()), normalize: Some(true), ..table("letter_count") },
            RewardConfig { target_length: Some(3), ..table("length") },
            RewardConfig { ngram_size: Some(1), max_penalty: Some(-4.0), ..table("repetition_penalty") },
            RewardConfig { soft_punish_cache: Some(4), ..table("soft_overlong") },
            RewardConfig {
                max_completion_len: Some(2),
                label: Some("l".into()),
                soft_punish_cache: Some(1),
                ..table("soft_overlong")
            },
        ];
        let config = RunConfig { rewards: tables, max_completion_length: 6, ..RunConfig::default() };
        let columns = crate::data::Columns::new();
        let input = crate::reward::RewardInput {
            prompt: "",
            messages: None,
            completion: "aa",
            completion_ids: &[1, 1, 1, 1],
            columns: &columns,
            line: 1,
        };
        let scored = config.build_rewards().unwrap().score(&input).unwrap();
        let expected = [3.0, -2.0, 1.0, -1.0, -3.0, -0.5, -1.0].map(Some);
        assert_eq!(scored.parts, expected);
    }
}
