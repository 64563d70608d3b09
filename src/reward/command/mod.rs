//! The reward `command`: a program of the user's that is kept running and scores completions.
//!
//! It reads one JSON object a line and writes one JSON object a line, in any order:
//!
//! ```text
//! {"id":0,"remaining":1,"prompt":"12 + 7 =","completion":" 19","columns":{"answer":"19"}}
//! {"id":1,"remaining":0,"prompt":"12 + 7 =","completion":" 20","columns":{"answer":"19"}}
//!                                                     {"id":1,"score":0.0}
//!                                                     {"id":0,"score":1.0}
//! ```
//!
//! All completions of a step go out together; `remaining` counts those that still follow. `id` is never used twice
//! while a program runs, `columns` are the columns of the row beside the prompt, and a score of null means "no score".
//! `program.rs` runs the process; here are what the lines mean and what happens when the program fails.

mod program;

use super::error::{ProgramTrouble, RewardError};
use super::{IsStopping, Reward, RewardInput, beginning};
use crate::data::Columns;
use program::{NoLine, Program, find};
use serde::Serialize;
use serde_json::Value;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The settings of a [`CommandReward`].
#[derive(Debug, Clone, PartialEq)]
pub struct CommandConfig {
    /// The program and its arguments. A program with a slash is a path from the working directory; one without is
    /// looked for in `PATH`. No shell is involved.
    pub command: Vec<String>,
    /// How long the scores of one batch may take, restarts included.
    pub timeout: Duration,
    /// How often a program that ends is started again for one batch.
    pub max_restarts: usize,
}

/// The reward `command`. The program is started by [`Reward::start`], or else with the first batch, and ends with the
/// reward.
pub struct CommandReward {
    name: String,
    config: CommandConfig,
    state: Mutex<State>,
    is_stopping: OnceLock<IsStopping>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` until it is started, and after it failed.
    program: Option<Program>,
    next_id: u64,
}

/// One completion as the program reads it.
#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    remaining: usize,
    prompt: &'a str,
    completion: &'a str,
    columns: &'a Columns,
}

/// Why a program gave no scores for a batch.
enum Trouble {
    Ended { answered: usize },
    Late { answered: usize },
    Reply { reply: String, reason: String },
}

impl CommandReward {
    /// A reward called `name` in metrics, messages and the log.
    #[must_use]
    pub fn new(name: impl Into<String>, config: CommandConfig) -> Self {
        Self { name: name.into(), config, state: Mutex::default(), is_stopping: OnceLock::new() }
    }

    fn start_program(&self) -> Result<Program, RewardError> {
        let command = &self.config.command;
        Program::start(&self.name, command).map_err(|source| self.cannot_run(source))
    }

    fn cannot_run(&self, source: std::io::Error) -> RewardError {
        let program = self.config.command.first().cloned().unwrap_or_default();
        RewardError::CannotRun { reward: self.name.clone(), program, source }
    }

    fn failed(&self, trouble: ProgramTrouble) -> RewardError {
        RewardError::Program { reward: self.name.clone(), trouble: Box::new(trouble) }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.get().is_some_and(|is_stopping| is_stopping())
    }
}

impl Reward for CommandReward {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        Ok(self.score_batch(std::slice::from_ref(input))?.pop().flatten())
    }

    fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.config.timeout;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut restarts = 0;
        loop {
            let program = match state.program.take() {
                Some(program) => program,
                None => self.start_program()?,
            };
            let first_id = state.next_id;
            state.next_id += inputs.len() as u64;
            match ask(&program, inputs, first_id, deadline) {
                Ok(scores) => {
                    state.program = Some(program);
                    return Ok(scores);
                }
                Err(Trouble::Ended { answered }) => {
                    let (ending, last_words) = program.last_words();
                    let (wanted, reward) = (inputs.len(), &self.name);
                    if restarts < self.config.max_restarts && !self.is_stopping() && Instant::now() < deadline {
                        restarts += 1;
                        tracing::warn!(
                            "the program of the reward `{reward}` {ending} after {answered} of {wanted} scores and is \
                             started again"
                        );
                    } else {
                        let trouble = ProgramTrouble::Ended { ending, answered, wanted, restarts, last_words };
                        return Err(self.failed(trouble));
                    }
                }
                Err(Trouble::Late { answered }) => {
                    program.kill();
                    let (secs, wanted) = (self.config.timeout.as_secs_f64(), inputs.len());
                    return Err(self.failed(ProgramTrouble::Late { secs, answered, wanted }));
                }
                Err(Trouble::Reply { reply, reason }) => {
                    program.kill();
                    return Err(self.failed(ProgramTrouble::Reply { reply, reason }));
                }
            }
        }
    }

    fn is_external(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), RewardError> {
        let program = self.config.command.first().map_or("", String::as_str);
        find(program).map(drop).map_err(|source| self.cannot_run(source))
    }

    fn start(&self, is_stopping: &IsStopping) -> Result<(), RewardError> {
        let _ = self.is_stopping.set(is_stopping.clone());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.program.is_none() {
            state.program = Some(self.start_program()?);
        }
        Ok(())
    }
}

/// Sends a batch whose ids begin with `first_id`, and waits for its scores.
fn ask(
    program: &Program,
    inputs: &[RewardInput<'_>],
    first_id: u64,
    deadline: Instant,
) -> Result<Vec<Option<f64>>, Trouble> {
    program.send(encode(inputs, first_id));
    let mut scores: Vec<Option<Option<f64>>> = vec![None; inputs.len()];
    for answered in 0..inputs.len() {
        let line = program.line(deadline).map_err(|no_line| match no_line {
            NoLine::Ended => Trouble::Ended { answered },
            NoLine::Late => Trouble::Late { answered },
        })?;
        let of_reply = |reason: String| Trouble::Reply { reply: beginning(&line), reason };
        let (id, score) = decode(&line).map_err(of_reply)?;
        let place = id.checked_sub(first_id).and_then(|index| scores.get_mut(usize::try_from(index).ok()?));
        match place {
            Some(place @ None) => *place = Some(score),
            Some(Some(_)) => return Err(of_reply(format!("the id {id} was answered before"))),
            None => return Err(of_reply(format!("nothing was asked with the id {id}"))),
        }
    }
    // Each of them was answered once.
    Ok(scores.into_iter().map(Option::flatten).collect())
}

/// The lines that ask for a batch.
fn encode(inputs: &[RewardInput<'_>], first_id: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        let RewardInput { prompt, completion, columns, .. } = *input;
        let (id, remaining) = (first_id + index as u64, inputs.len() - 1 - index);
        // Writing texts and columns of JSON into memory cannot fail.
        let _ = serde_json::to_writer(&mut bytes, &Request { id, remaining, prompt, completion, columns });
        bytes.push(b'\n');
    }
    bytes
}

/// Id and score of a reply, or what is wrong with it.
fn decode(line: &str) -> Result<(u64, Option<f64>), String> {
    let reply: Value = serde_json::from_str(line).map_err(|error| {
        let is_not_finite = ["NaN", "Infinity"].iter().any(|word| line.contains(word));
        if is_not_finite { "JSON has no NaN and no Infinity".to_owned() } else { format!("it is no JSON ({error})") }
    })?;
    let id = reply.get("id").and_then(Value::as_u64).ok_or("it has no `id` of a completion")?;
    match reply.get("score") {
        Some(Value::Null) => Ok((id, None)),
        Some(score) => {
            let score = score
                .as_f64()
                .ok_or_else(|| format!("its `score` is {}, not a number or null", beginning(&score.to_string())))?;
            Ok((id, Some(score)))
        }
        None => Err("it has no `score`".to_owned()),
    }
}
