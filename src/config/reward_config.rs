//! The keys of a `[[rewards]]` table, each with its description: the reference page is made of these comments, as it is
//! of those in `run_config.rs`. Which reward reads which key is said in `reward_kinds.rs`.

use super::kinds::OnFailure;
use serde::{Deserialize, Serialize};

/// One reward function with its weight. A key that the function does not read is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// Which reward function. Default `"last_integer"`: the last integer of the completion against the answer's.
    pub name: String,
    /// Its name in metrics and messages; two rewards of one function need different ones. Default none: `name`.
    pub label: Option<String>,
    /// Factor of this reward in the sum, any finite number. Default `1.0`: the reward as it is.
    pub weight: f64,
    /// Score of a right completion, any finite number. Default none: 1, so that the mean reward is the accuracy.
    pub correct_reward: Option<f64>,
    /// Score of any other completion, any finite number. Default none: 0, so that the mean reward is the accuracy.
    pub wrong_reward: Option<f64>,
    /// Regular expression in the syntax of <https://docs.rs/regex>: no look-around, no back-references.
    /// Default none: `[0-9]+` for `format`; `regex` needs one.
    pub pattern: Option<String>,
    /// The character to count; capitals differ. Default none: `letter_count` needs one.
    pub letter: Option<String>,
    /// Divide the count by the number of characters, white space included. Default none: `false`, the plain count.
    pub normalize: Option<bool>,
    /// Wanted tokens of a completion, an ending EOS counted. Default none: 0, the shorter the better.
    pub target_length: Option<usize>,
    /// Tokens of an n-gram, 1 or more. Default none: 3, as TRL.
    pub ngram_size: Option<usize>,
    /// Score that a completion of nothing but repetition comes near to, 0 or less. Default none: -1, as TRL.
    pub max_penalty: Option<f64>,
    /// Tokens from which on the cost is 1. Default none: `max_completion_length`, where completions are cut.
    pub max_completion_len: Option<usize>,
    /// Tokens before `max_completion_len` over which the cost rises, 0 to `max_completion_len`.
    /// Default none: `soft_overlong` needs it.
    pub soft_punish_cache: Option<usize>,
    /// The reward model: a folder or a Hub id (`org/name`) of a sequence classifier with one label, such as
    /// `algorithm = "reward"` writes. Default none: the reward `model` needs one.
    pub model: Option<String>,
    /// Branch, tag or commit of its Hub id. Default none: the main branch.
    pub revision: Option<String>,
    /// The program of `command` and its arguments. A program with a slash is a path from the folder of the call, one
    /// without is looked for in `PATH`; no shell is involved. Default none: `command` needs it.
    pub command: Option<Vec<String>>,
    /// Seconds: of `command` for the scores of one batch, restarts included (a batch is what a step samples at once; an
    /// evaluation scores 1024 completions at a time); of `judge` for one request. Above 0, at most 86400.
    /// Default none: 60, for programs and services that are up.
    pub timeout_secs: Option<f64>,
    /// How often the program is started again within one batch where it ends, 0 or more.
    /// Default none: 2, because what ends three times over one batch is no accident.
    pub max_restarts: Option<usize>,
    /// Address of the OpenAI-compatible service (`http://localhost:8000/v1`); `/chat/completions` is added to it.
    /// Default none: `judge` needs it.
    pub base_url: Option<String>,
    /// Name of the model that the service runs. Default none: `judge` needs it.
    pub judge_model: Option<String>,
    /// What the judge is asked: a text with `{prompt}`, `{completion}` and `{column}` for any column of the row. Braces
    /// around anything but a name stay as they are. Default none: `judge` needs it.
    pub prompt_template: Option<String>,
    /// Regular expression with one group: the number that the group of its last match in the judge's reply holds is the
    /// score. Default none: `judge` needs this or `score_key`.
    pub score_pattern: Option<String>,
    /// Key of the score in the last JSON object of the judge's reply; text around the object, such as the fences of
    /// Markdown, is skipped. Default none: `judge` needs this or `score_pattern`.
    pub score_key: Option<String>,
    /// The judge's score that becomes 0; with `max_score`. A score outside of both counts as none.
    /// Default none: scores are taken as they are.
    pub min_score: Option<f64>,
    /// The judge's score that becomes 1; with `min_score`. Default none: scores are taken as they are.
    pub max_score: Option<f64>,
    /// Temperature of the judge, 0 or more. Default none: 0, so that it says the same each time as far as it can.
    pub temperature: Option<f64>,
    /// Requests to the judge at the same time, 1 to 256. Default none: 8, which small servers bear.
    pub concurrency: Option<usize>,
    /// How often a request to the judge is sent again: where no connection or answer comes about, after HTTP 408, 409,
    /// 425, 429 and 5xx (with growing pauses, or after what `Retry-After` says), and after a reply without a score.
    /// 0 or more. Default none: 5, about 15 seconds.
    pub max_retries: Option<usize>,
    /// Name of the environment variable, in capitals, with the key of the judge's service. The key itself is never
    /// written anywhere. Default none: no key is sent.
    pub api_key_env: Option<String>,
    /// Where the judge's reply has no score after all retries: `stop` the run, or `none`: the completion has no score
    /// from this reward, which is counted and warned of. A service that does not answer stops the run in either case.
    /// Default none: `stop`, since rewards that are missing should be noticed.
    pub on_failure: Option<OnFailure>,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            name: "last_integer".to_owned(),
            label: None,
            weight: 1.0,
            correct_reward: None,
            wrong_reward: None,
            pattern: None,
            letter: None,
            normalize: None,
            target_length: None,
            ngram_size: None,
            max_penalty: None,
            max_completion_len: None,
            soft_punish_cache: None,
            model: None,
            revision: None,
            command: None,
            timeout_secs: None,
            max_restarts: None,
            base_url: None,
            judge_model: None,
            prompt_template: None,
            score_pattern: None,
            score_key: None,
            min_score: None,
            max_score: None,
            temperature: None,
            concurrency: None,
            max_retries: None,
            api_key_env: None,
            on_failure: None,
        }
    }
}

impl RewardConfig {
    /// The name in metrics and messages: the label, else the function's name.
    #[must_use]
    pub fn called(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.name)
    }
}
