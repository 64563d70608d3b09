//! The reward `judge`: a language model behind an OpenAI-compatible service is asked what a completion is worth.
//!
//! `template.rs` makes the question, `client.rs` asks it, `verdict.rs` reads the score in the reply. Here are the
//! requests of a batch side by side, what happens to a reply without a score, and what ends a run.

mod client;
mod template;
mod verdict;

pub use verdict::{Scale, Verdict};

use super::error::RewardError;
use super::{IsStopping, Reward, RewardInput, beginning};
use crate::data::Columns;
use crate::env;
use client::{Client, Refusal, pause};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use template::Template;

/// How often a pause looks whether the run is to stop.
const TICK: Duration = Duration::from_millis(50);

/// The settings of a [`Judge`].
#[derive(Debug, Clone)]
pub struct JudgeConfig {
    /// Address of the service; `/chat/completions` is added.
    pub base_url: String,
    /// Model that the service runs.
    pub judge_model: String,
    /// The question, with `{prompt}`, `{completion}` and `{column}` for any column of the row.
    pub prompt_template: String,
    pub verdict: Verdict,
    /// Maps scores to 0 to 1; None leaves them as they are.
    pub scale: Option<Scale>,
    pub temperature: f64,
    /// Requests at a time, 1 or more.
    pub concurrency: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// How often a request is sent again.
    pub max_retries: usize,
    /// Environment variable with the key of the service; None sends none.
    pub api_key_env: Option<String>,
    pub on_failure: OnFailure,
}

/// What a reply without a score does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It ends the run.
    #[default]
    Stop,
    /// The completion has no score from the judge.
    None,
}

/// The reward `judge`. Equal questions of a batch are asked once.
pub struct Judge {
    name: String,
    config: JudgeConfig,
    template: Template,
    client: OnceLock<Client>,
    is_stopping: OnceLock<IsStopping>,
}

/// What became of a question.
enum Answer {
    Score(f64),
    /// The reply in which there is no score.
    None(String),
    Refused(Refusal, usize),
    /// Not asked to the end, because another question ended the batch.
    Dropped,
}

impl Judge {
    /// A reward called `name` in metrics, messages and the log.
    #[must_use]
    pub fn new(name: impl Into<String>, config: JudgeConfig) -> Self {
        let template = Template::parse(&config.prompt_template);
        Self { name: name.into(), config, template, client: OnceLock::new(), is_stopping: OnceLock::new() }
    }

    /// Whether the question shows the completion.
    #[must_use]
    pub fn sees_completion(&self) -> bool {
        self.template.has_completion()
    }

    fn client(&self) -> Result<&Client, RewardError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let JudgeConfig { base_url, judge_model, temperature, timeout, api_key_env, .. } = &self.config;
        let key = match api_key_env {
            None => None,
            Some(variable) => Some(
                env::secret(variable)
                    .ok_or_else(|| RewardError::NoKey { reward: self.name.clone(), variable: variable.clone() })?,
            ),
        };
        Ok(self.client.get_or_init(|| Client::new(base_url, judge_model, *temperature, *timeout, key)))
    }

    /// Asks one question until there is a score, or no more tries.
    fn ask(&self, client: &Client, question: usize, text: &str, is_failed: &AtomicBool) -> Answer {
        let is_failed = || is_failed.load(Ordering::Relaxed);
        let is_stopping = || self.is_stopping.get().is_some_and(|is_stopping| is_stopping());
        let mut retries = 0;
        loop {
            let (failed, may_pass, retry_after) = match client.ask(text) {
                Ok(reply) => match self.read(&reply) {
                    Some(score) => return Answer::Score(score),
                    None => (Answer::None(client.redact(&reply)), true, None),
                },
                Err(refusal) => {
                    let (may_pass, retry_after) = (refusal.may_pass, refusal.retry_after);
                    tracing::debug!("{}: try {}: {}", self.name, retries + 1, refusal.reason);
                    (Answer::Refused(refusal, retries + 1), may_pass, retry_after)
                }
            };
            // A reply without a score is no reason to wait.
            let wait = match &failed {
                Answer::Refused(..) => pause(question, retries, retry_after),
                _ => Duration::ZERO,
            };
            let is_last = !may_pass || retries == self.config.max_retries;
            if is_last || !sleep(wait, &|| is_failed() || is_stopping()) {
                // Another question ended the batch with better reason than this one, which was cut short.
                return if is_failed() && !is_last { Answer::Dropped } else { failed };
            }
            retries += 1;
        }
    }

    fn read(&self, reply: &str) -> Option<f64> {
        let score = self.config.verdict.read(reply)?;
        self.config.scale.map_or(Some(score), |scale| scale.apply(score))
    }

    /// Whether an answer ends the batch.
    fn is_final(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Score(_) | Answer::Dropped => false,
            Answer::None(_) => self.config.on_failure == OnFailure::Stop,
            Answer::Refused(..) => true,
        }
    }

    /// The answers to all questions, several asked at a time. After one that ends the batch nothing new is asked.
    fn ask_all(&self, client: &Client, questions: &[&str]) -> Vec<Answer> {
        let (next, is_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let mut found = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(question) = questions.get(index) else { return found };
                if is_failed.load(Ordering::Relaxed) {
                    return found;
                }
                let answer = self.ask(client, index, question, &is_failed);
                if self.is_final(&answer) {
                    is_failed.store(true, Ordering::Relaxed);
                }
                found.push((index, answer));
            }
        };
        let mut answers: Vec<Answer> = questions.iter().map(|_| Answer::Dropped).collect();
        thread::scope(|scope| {
            let num_threads = self.config.concurrency.clamp(1, questions.len().max(1));
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                for (index, answer) in found {
                    answers[index] = answer;
                }
            }
        });
        answers
    }

    /// The score that an answer gives; `line` is that of the first completion that asked for it.
    fn score_of(&self, client: &Client, answer: &Answer, line: usize) -> Result<Option<f64>, RewardError> {
        let reward = || self.name.clone();
        match answer {
            Answer::Score(score) => Ok(Some(*score)),
            Answer::None(reply) if self.config.on_failure == OnFailure::Stop => {
                Err(RewardError::NoVerdict { reward: reward(), line, reply: beginning(reply) })
            }
            Answer::None(_) | Answer::Dropped => Ok(None),
            Answer::Refused(Refusal { reason, status, .. }, tries) => Err(RewardError::Judge {
                reward: reward(),
                url: client.url.clone(),
                tries: *tries,
                status: *status,
                reason: reason.clone(),
            }),
        }
    }

    /// Says how many completions of a batch have no score, and why.
    fn warn(&self, scores: &[Option<f64>], answers: &[Answer]) {
        let without = scores.iter().filter(|score| score.is_none()).count();
        let reply = answers.iter().find_map(|answer| match answer {
            Answer::None(reply) => Some(beginning(reply)),
            _ => None,
        });
        if let Some(reply) = reply {
            let (name, all) = (&self.name, scores.len());
            tracing::warn!("{name}: no score for {without} of {all} completions; the judge answered {reply:?}");
        }
    }
}

impl Reward for Judge {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(self.score_batch(std::slice::from_ref(input))?.pop().flatten())
    }

    fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let client = self.client()?;
        let texts: Vec<String> = inputs.iter().map(|input| self.template.fill(input)).collect();
        let (mut questions, mut lines, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        let asks: Vec<usize> = texts
            .iter()
            .zip(inputs)
            .map(|(text, input)| {
                *known.entry(text.as_str()).or_insert_with(|| {
                    questions.push(text.as_str());
                    lines.push(input.line);
                    questions.len() - 1
                })
            })
            .collect();
        let answers = self.ask_all(client, &questions);
        let scores = answers.iter().zip(lines).map(|(answer, line)| self.score_of(client, answer, line));
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        let scores: Vec<Option<f64>> = asks.into_iter().map(|question| scores[question]).collect();
        self.warn(&scores, &answers);
        Ok(scores)
    }

    fn is_external(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), RewardError> {
        self.client().map(drop)
    }

    fn start(&self, is_stopping: &IsStopping) -> Result<(), RewardError> {
        let _ = self.is_stopping.set(is_stopping.clone());
        self.check()
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        match self.template.missing_column(columns) {
            None => Ok(()),
            Some(missing) => {
                let present: Vec<_> = columns.names().collect();
                let present = if present.is_empty() { "nothing but the prompt".to_owned() } else { present.join(", ") };
                Err(format!("`prompt_template` names {{{missing}}}, and it has no such column (it has: {present})"))
            }
        }
    }
}

/// Waits; false where it is over before.
fn sleep(pause: Duration, is_over: &dyn Fn() -> bool) -> bool {
    let until = Instant::now() + pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if is_over() {
            return false;
        }
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(TICK));
    }
}
