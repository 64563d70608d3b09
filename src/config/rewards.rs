//! The `[[rewards]]` tables of a configuration: what is wrong with them, and the rewards that they make.
//!
//! A table is checked by making the reward of it, so that nothing is accepted that cannot be made. The single kinds are
//! in `reward_kinds.rs`.

use super::checks::Problem;
use super::diagnostic::{ConfigError, Place};
use super::kinds::EvalGrader;
use super::names::{REWARD_FIELDS, nearest};
use super::reward_config::RewardConfig;
use super::reward_kinds::{Fault, KINDS};
use super::run_config::RunConfig;
use crate::reward::{Labelled, Reward, WeightedRewards};
use std::sync::Arc;

/// The keys that every reward reads.
const COMMON: [&str; 3] = ["name", "label", "weight"];

/// The keys of a table that have a value and are not read by every reward.
fn given_keys(table: &RewardConfig) -> Vec<&'static str> {
    let values = serde_json::to_value(table).unwrap_or_default();
    let is_given = |key: &&str| !COMMON.contains(key) && !values[*key].is_null();
    REWARD_FIELDS.iter().map(|field| field.name.as_str()).filter(is_given).collect()
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
        ("min_score", table.min_score),
        ("max_score", table.max_score),
        ("temperature", table.temperature),
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
    use super::*;
    use std::collections::BTreeSet;

    fn table(name: &str) -> RewardConfig {
        RewardConfig { name: name.to_owned(), ..RewardConfig::default() }
    }

    /// A table of this kind with what it needs.
    fn complete(kind: &str) -> RewardConfig {
        let table = table(kind);
        match kind {
            "regex" => RewardConfig { pattern: Some("a".into()), ..table },
            "letter_count" => RewardConfig { letter: Some("e".into()), ..table },
            "soft_overlong" => RewardConfig { soft_punish_cache: Some(8), ..table },
            "model" => RewardConfig { model: Some("folder".into()), ..table },
            "command" => RewardConfig { command: Some(vec!["cat".into()]), ..table },
            "judge" => RewardConfig {
                base_url: Some("http://localhost:1/v1/".into()),
                judge_model: Some("m".into()),
                prompt_template: Some("{completion}".into()),
                score_key: Some("score".into()),
                ..table
            },
            _ => table,
        }
    }

    /// Every key of a table is read by some kind, and every kind reads keys that exist.
    #[test]
    fn the_kinds_read_the_keys_that_exist() {
        let fields: BTreeSet<&str> = REWARD_FIELDS.iter().map(|field| field.name.as_str()).collect();
        let read: BTreeSet<&str> = KINDS.iter().flat_map(|kind| kind.keys).copied().chain(COMMON).collect();
        assert_eq!(fields, read);
        let some = RewardConfig { normalize: Some(false), command: Some(vec![]), ..RewardConfig::default() };
        assert_eq!(given_keys(&some), ["normalize", "command"]);
    }

    /// A kind's name in the table is the reward's own name, and a label takes its place.
    #[test]
    fn every_kind_makes_the_reward_of_its_name() {
        for kind in KINDS {
            let table = complete(kind.name);
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
