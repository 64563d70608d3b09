//! Evaluation: what samples of a model on a data set amount to, and the files that hold them.
//!
//! [`run_eval`] samples and grades, [`compute_figures`] is a pure function of the [`EvalSample`]s, [`compare`] puts the
//! figures and distributions of several models side by side, [`write_results`] writes files in the shape of
//! lm-evaluation-harness, so that its readers and the Hub's take them. Models and data are loaded elsewhere (`recipe`),
//! and nothing is printed. [`compute_perplexity`] is the other kind of evaluation: how well a model predicts a text.

mod compare;
mod distribution;
mod figures;
mod perplexity;
mod results;
mod run;

pub use compare::{Column, CompareOptions, Comparison, Evaluated, ShownCompletion, ShownPrompt, compare};
pub use distribution::{
    AnswerCounts, Bin, TextStatistics, bins_of, count_answers, count_rewards, labels, reward_bins, text_statistics,
};
pub use figures::{Estimate, EvalFigures, compute_figures, pass_at_k, pass_hat_k};
pub use perplexity::{Perplexity, compute_perplexity};
pub use results::{EvalRun, ResultPaths, SampleRow, results_json, sample_rows, write_results};
pub use run::{EvalConfig, EvalError, Grader, run_eval, summarize};

use crate::text::FinishReason;

/// One completion of an evaluation with what the graders say of it.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSample {
    /// The row of the data file, from 0. Samples of one prompt stand together.
    pub row_index: u64,
    /// The prompt as the model read it.
    pub prompt: String,
    /// The decoded completion.
    pub completion: String,
    /// Tokens in the completion, EOS included.
    pub num_tokens: usize,
    /// Whether the model ended it or the length limit did.
    pub finish_reason: FinishReason,
    /// The weighted sum of the rewards; None where no reward gave a score.
    pub reward: Option<f64>,
    /// The score of each reward, in the order of the reward names.
    pub rewards: Vec<Option<f64>>,
    /// Whether the completion is right.
    pub is_correct: bool,
    /// What the grader read in the completion, such as its last integer.
    pub extracted: Option<String>,
    /// What it should have read.
    pub target: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample that is right and stopped, or wrong and cut.
    pub(super) fn sample(row_index: u64, is_correct: bool) -> EvalSample {
        let score = if is_correct { 1.0 } else { 0.0 };
        EvalSample {
            row_index,
            prompt: "0 + 1 =".into(),
            completion: if is_correct { "right" } else { "wrong" }.into(),
            num_tokens: 2,
            finish_reason: if is_correct { FinishReason::Stop } else { FinishReason::Length },
            reward: Some(score),
            rewards: vec![Some(score)],
            is_correct,
            extracted: is_correct.then(|| "1".into()),
            target: Some("1".into()),
        }
    }
}
