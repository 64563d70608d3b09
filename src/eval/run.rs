//! Running a model over a data set: prompts -> completions -> what the graders say. It writes nothing.

use super::{EvalFigures, EvalSample, compute_figures};
use crate::data::{Row, RowPlace};
use crate::error::{Diagnose, Exit};
use crate::io::IoError;
use crate::model::Decoder;
use crate::reward::{
    ExactMatch, LastInteger, Reward, RewardError, RewardInput, Scored, WeightedRewards, extract_last_integer,
};
use crate::rollout::{Completion, Engine, Observer, RolloutError, RolloutRequest, SamplingConfig};
use crate::telemetry::{EvalFigures as Headline, StepMetrics};
use crate::text::{StopRules, TextError, Tokenizer};
use crate::trainer::PreparedPrompt;
use rayon::prelude::*;

/// Completions that are scored together: what a `command` reward has its `timeout_secs` for.
const SCORED_TOGETHER: usize = 1024;

/// How an evaluation samples.
#[derive(Debug, Clone)]
pub struct EvalConfig {
    /// Completions of each prompt.
    pub num_samples: usize,
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// When completions end.
    pub stop: StopRules,
    /// Completions that decode together; 0: all.
    pub slots: usize,
    /// Names the draws.
    pub seed: u64,
}

/// Decides which completions are right: what `accuracy` counts.
#[derive(Debug, Clone)]
pub enum Grader {
    /// Those that end in the integer of the answer column.
    LastInteger(LastInteger),
    /// Those that are the text of the answer column.
    ExactMatch(ExactMatch),
    /// Those that the first of the rewards scores above 0.5.
    FirstReward,
}

impl Grader {
    /// The rule's name in result files.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::LastInteger(_) => "last-integer",
            Self::ExactMatch(_) => "exact-match",
            Self::FirstReward => "first-reward",
        }
    }

    /// Checks that every row has what the grader needs.
    ///
    /// # Errors
    /// [`EvalError::BadRow`] for the first row that has not.
    pub fn check_rows(&self, rows: &[Row]) -> Result<(), EvalError> {
        let check: &dyn Reward = match self {
            Self::LastInteger(grader) => grader,
            Self::ExactMatch(grader) => grader,
            Self::FirstReward => return Ok(()),
        };
        rows.iter().try_for_each(|row| {
            check.check_row(&row.columns).map_err(|reason| EvalError::BadRow {
                place: row.place.clone().into(),
                grader: check.name().to_string(),
                reason,
            })
        })
    }

    /// Whether a completion is right, what was read in it and what should have been.
    fn grade(&self, input: &RewardInput<'_>, scored: &Scored) -> Result<Grade, RewardError> {
        let is_right = |score: Option<f64>| score.is_some_and(|score| score > 0.5);
        Ok(match self {
            Self::LastInteger(grader) => Grade {
                is_correct: is_right(grader.score(input)?),
                extracted: extract_last_integer(input.completion),
                target: input.columns.text(&grader.answer_column).and_then(extract_last_integer),
            },
            Self::ExactMatch(grader) => Grade {
                is_correct: is_right(grader.score(input)?),
                extracted: Some(input.completion.trim().to_string()),
                target: input.columns.text(&grader.answer_column).map(|answer| answer.trim().to_string()),
            },
            Self::FirstReward => {
                Grade { is_correct: is_right(scored.parts.first().copied().flatten()), extracted: None, target: None }
            }
        })
    }
}

struct Grade {
    is_correct: bool,
    extracted: Option<String>,
    target: Option<String>,
}

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// What is right cannot be told for a row.
    #[error("{place}: what is right here cannot be told by `{grader}`: {reason}")]
    BadRow {
        /// The row.
        place: Box<RowPlace>,
        /// The `eval_grader`.
        grader: String,
        /// What is missing.
        reason: String,
    },
    /// A completion could not be sampled.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// A completion could not be scored.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// A completion could not be decoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A result file could not be written.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl EvalError {
    fn inner(&self) -> Option<&dyn Diagnose> {
        match self {
            Self::BadRow { .. } => None,
            Self::Rollout(error) => Some(error),
            Self::Reward(error) => Some(error),
            Self::Text(error) => Some(error),
            Self::Io(error) => Some(error),
        }
    }
}

impl Diagnose for EvalError {
    fn hint(&self) -> Option<String> {
        let hint = "Correct the row, set `answer_column`, or say with `eval_grader` what counts as right";
        self.inner().map_or_else(|| Some(hint.to_string()), Diagnose::hint)
    }

    fn exit(&self) -> Exit {
        self.inner().map_or(Exit::Data, Diagnose::exit)
    }
}

/// Samples and grades completions of every prompt. A completion is right when `grader` says so; samples of a prompt
/// stand together, in the order of `prompts`.
///
/// # Errors
/// Fails where a completion cannot be sampled, decoded or scored.
pub fn run_eval(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompts: &[PreparedPrompt],
    rewards: &WeightedRewards,
    grader: &Grader,
    config: &EvalConfig,
    observer: &mut dyn Observer,
) -> Result<Vec<EvalSample>, EvalError> {
    let engine = Engine {
        decoder,
        tokenizer,
        sampling: config.sampling,
        stop: &config.stop,
        slots: config.slots,
        seed: config.seed,
        step: 0,
    };
    let requests: Vec<RolloutRequest> = prompts
        .iter()
        .map(|prompt| RolloutRequest {
            prompt_ids: prompt.ids.clone(),
            prompt: prompt.row,
            first_completion: 0,
            num_generations: config.num_samples,
        })
        .collect();
    let (groups, _) = engine.run(&requests, observer)?;
    let rows: Vec<_> =
        prompts.iter().zip(&groups).flat_map(|(p, g)| g.completions.iter().map(move |c| (p, c))).collect();
    let mut samples = Vec::with_capacity(rows.len());
    for rows in rows.chunks(SCORED_TOGETHER) {
        samples.extend(score(tokenizer, rewards, grader, rows)?);
    }
    Ok(samples)
}

/// Scores and grades completions of prompts, in their order.
fn score(
    tokenizer: &Tokenizer,
    rewards: &WeightedRewards,
    grader: &Grader,
    rows: &[(&PreparedPrompt, &Completion)],
) -> Result<Vec<EvalSample>, EvalError> {
    let texts: Vec<String> =
        rows.par_iter().map(|(_, sampled)| tokenizer.decode(&sampled.ids)).collect::<Result<_, _>>()?;
    let inputs = rows.iter().zip(&texts).map(|((prompt, sampled), text)| prompt.reward_input(text, &sampled.ids));
    let inputs: Vec<RewardInput<'_>> = inputs.collect();
    let scored = rewards.score_batch(&inputs)?;
    rows.par_iter()
        .zip(&inputs)
        .zip(scored)
        .map(|(((prompt, sampled), input), scored)| {
            let grade = grader.grade(input, &scored)?;
            Ok(EvalSample {
                row_index: prompt.row,
                prompt: prompt.text.clone(),
                num_tokens: sampled.ids.len(),
                finish_reason: sampled.finish_reason,
                reward: scored.total,
                rewards: scored.parts,
                is_correct: grade.is_correct,
                extracted: grade.extracted,
                target: grade.target,
                completion: input.completion.to_owned(),
            })
        })
        .collect()
}

/// The headline and the metrics (without the prefix `eval_`) of an evaluation inside a run.
#[must_use]
pub fn summarize(samples: &[EvalSample], rewards: &WeightedRewards) -> (Headline, StepMetrics) {
    let names: Vec<String> = rewards.names().map(str::to_owned).collect();
    let mut metrics = StepMetrics::new();
    let Some(figures) = compute_figures(samples, &names) else {
        return (Headline::graded(0.0, 0.0, 0), metrics);
    };
    let EvalFigures { num_samples, accuracy, mean_reward, rewards, mean_completion_tokens, clipped_ratio, .. } =
        figures;
    let mean_reward = mean_reward.map_or(0.0, |estimate| estimate.value);
    metrics.gauge("accuracy", accuracy.value);
    metrics.gauge("reward", mean_reward);
    for (name, mean) in rewards {
        if let Some(mean) = mean {
            metrics.gauge(&format!("rewards/{name}/mean"), mean);
        }
    }
    metrics.gauge("completions/mean_length", mean_completion_tokens);
    metrics.gauge("completions/clipped_ratio", clipped_ratio);
    (Headline::graded(accuracy.value, mean_reward, num_samples), metrics)
}
