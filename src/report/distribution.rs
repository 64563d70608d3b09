//! How rewards and extracted answers of the logged completions change over the run: counts for heat maps.

use super::run::{Run, Scored};
use crate::eval::{Bin, bins_of};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Columns of a heat map.
const MAX_RANGES: u64 = 50;
/// Answers that have a row of their own, the most common of all runs.
const MAX_ANSWERS: usize = 12;
/// Characters of an answer that are shown.
const ANSWER_CHARS: usize = 40;

/// What all runs share, so that their maps can be compared, and the counts of each.
pub(super) struct Distributions {
    /// First and last step of each column.
    pub ranges: Vec<(u64, u64)>,
    /// Lower and upper end of the rewards of each row, the lowest first.
    pub bins: Vec<(f64, f64)>,
    /// The answers that have rows.
    pub answers: Vec<String>,
    /// For each run `rewards` and `answers`: a list of counts for each column. After the rows come, for rewards, the
    /// completions without one; for answers, those with another and those with none.
    pub runs: Vec<Value>,
}

pub(super) fn distributions(runs: &[Run]) -> Distributions {
    let all = || runs.iter().flat_map(|run| &run.completions);
    let ranges = ranges(all().map(|scored| scored.step));
    let bins = bins_of(all().filter_map(|scored| scored.reward));
    let answers = common_answers(all());
    let runs = runs.iter().map(|run| counts(&run.completions, &ranges, &bins, &answers)).collect();
    let answers = answers.iter().map(|answer| answer.chars().take(ANSWER_CHARS).collect()).collect();
    Distributions { ranges, bins: bins.iter().map(|bin| (bin.low, bin.high)).collect(), answers, runs }
}

/// At most [`MAX_RANGES`] ranges of equally many steps that hold all `steps`.
fn ranges(steps: impl Iterator<Item = u64> + Clone) -> Vec<(u64, u64)> {
    let (Some(first), Some(last)) = (steps.clone().min(), steps.max()) else { return Vec::new() };
    // A step may be any number that the file gives: nothing here goes beyond the largest.
    let width = (last - first) / MAX_RANGES + 1;
    let starts = (0..=(last - first) / width).map(|i| first + i * width);
    starts.map(|start| (start, start.saturating_add(width - 1).min(last))).collect()
}

fn common_answers<'a>(all: impl Iterator<Item = &'a Scored>) -> Vec<&'a str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for answer in all.filter_map(|scored| scored.answer.as_deref()) {
        *counts.entry(answer).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts.into_iter().take(MAX_ANSWERS).map(|(answer, _)| answer).collect()
}

fn counts(completions: &[Scored], ranges: &[(u64, u64)], bins: &[Bin], answers: &[&str]) -> Value {
    let mut rewards = vec![vec![0u32; bins.len() + 1]; ranges.len()];
    let mut found = vec![vec![0u32; answers.len() + 2]; ranges.len()];
    for scored in completions {
        let column = ranges.partition_point(|(first, _)| *first <= scored.step).saturating_sub(1);
        // The last bin that starts at or below the reward.
        let bin = scored.reward.map_or(0, |reward| bins.partition_point(|bin| bin.low <= reward));
        rewards[column][bin.checked_sub(1).unwrap_or(bins.len())] += 1;
        let answer = scored.answer.as_deref().map(|answer| answers.iter().position(|known| *known == answer));
        found[column][match answer {
            Some(Some(at)) => at,
            Some(None) => answers.len(),
            None => answers.len() + 1,
        }] += 1;
    }
    json!({"rewards": rewards, "answers": found})
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_of;
    use super::*;

    #[test]
    fn every_completion_is_in_one_row_of_each_map() {
        let line = |step: u64, completion: &str, reward: &str| {
            format!(r#"{{"step":{step},"prompt":"p","completion":"{completion}","rewards":{{}},"reward":{reward}}}"#)
                + "\n"
        };
        let text: String = (1..=120).map(|step| line(step, if step <= 60 { "it is 7" } else { "8" }, "0.5")).collect();
        let run = run_of("{\"step\":1}\n", &(text + &line(120, "none", "1.0") + &line(120, "9", "null")));
        let found = distributions(&[run]);
        assert_eq!(found.ranges.len(), 40);
        assert_eq!((found.ranges[0], found.ranges[39]), ((1, 3), (118, 120)));
        assert_eq!(found.bins, [(0.5, 0.5), (1.0, 1.0)]);
        assert_eq!(found.answers, ["7", "8", "9"]);
        let counts = &found.runs[0];
        assert_eq!(counts["rewards"][0], json!([3, 0, 0]));
        assert_eq!(counts["rewards"][39], json!([3, 1, 1]));
        assert_eq!(counts["answers"][0], json!([3, 0, 0, 0, 0]));
        assert_eq!(counts["answers"][39], json!([0, 3, 1, 0, 1]));
    }

    #[test]
    fn ranges_reach_to_the_largest_step() {
        assert_eq!(ranges([u64::MAX].into_iter()), [(u64::MAX, u64::MAX)]);
        let all = ranges([0, u64::MAX].into_iter());
        assert_eq!((all.len(), all[0].0, all[49].1), (50, 0, u64::MAX));
    }

    #[test]
    fn a_run_without_completions_has_no_maps() {
        let found = distributions(&[run_of("{\"step\":1}\n", "")]);
        assert!(found.ranges.is_empty() && found.bins.is_empty() && found.answers.is_empty());
    }
}
