//! What the tests of the rewards share.

use super::{Reward, RewardInput};
use crate::data::Columns;

/// A completion of the row in line 1.
pub(super) fn input<'a>(completion: &'a str, completion_ids: &'a [u32], columns: &'a Columns) -> RewardInput<'a> {
    RewardInput { prompt: "", messages: None, completion, completion_ids, columns, line: 1 }
}

/// The scores of these completions of a row with this `answer`.
pub(super) fn scores(reward: &dyn Reward, answer: &str, completions: &[&str]) -> Vec<f64> {
    let columns = Columns::from_iter([("answer", answer)]);
    reward.check_row(&columns).unwrap();
    completions.iter().map(|completion| reward.score(&input(completion, &[], &columns)).unwrap().unwrap()).collect()
}

/// The score of a completion of these token ids.
pub(super) fn score_of_ids(reward: &dyn Reward, ids: &[u32]) -> f64 {
    reward.score(&input("", ids, &Columns::new())).unwrap().unwrap()
}
