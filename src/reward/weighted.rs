//! The weighted sum of several rewards.

use std::sync::Arc;

use super::error::RewardError;
use super::{IsStopping, Reward, RewardInput, TokenScores, beginning};
use crate::data::Row;
use crate::device::Compute;
use rayon::prelude::*;
use std::panic::resume_unwind;
use std::thread;

/// Rewards with their weights: `R = sum over k of weight_k * score_k`. A clone shares the rewards.
#[derive(Clone, Default)]
pub struct WeightedRewards {
    /// Each reward with its weight, in the order of their scores.
    pub parts: Vec<(f64, Arc<dyn Reward>)>,
}

/// The scores of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The weighted sum over the rewards that gave a score; None where none did.
    pub total: Option<f64>,
    /// The score of each reward, unweighted, in the order of `WeightedRewards::parts`.
    pub parts: Vec<Option<f64>>,
    /// The weighted sum of the token scores, one entry a completion id, None where no reward gave one; empty where no
    /// reward gave any.
    pub token_values: Vec<Option<f64>>,
    /// Whether each completion id may be learned from: where every reward that says so keeps it. Empty: all may.
    pub keep: Vec<bool>,
}

impl WeightedRewards {
    /// One reward of weight 1.
    #[must_use]
    pub fn single(reward: impl Reward + 'static) -> Self {
        Self::default().with(1.0, reward)
    }

    /// Adds a reward.
    #[must_use]
    pub fn with(mut self, weight: f64, reward: impl Reward + 'static) -> Self {
        self.parts.push((weight, Arc::new(reward)));
        self
    }

    /// Names of the rewards, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(_, reward)| reward.name())
    }

    /// Scores a completion.
    ///
    /// # Errors
    /// As [`WeightedRewards::score_batch`].
    pub fn score(&self, input: &RewardInput<'_>) -> Result<Scored, RewardError> {
        let nothing = Scored { total: None, parts: Vec::new(), token_values: Vec::new(), keep: Vec::new() };
        Ok(self.score_batch(std::slice::from_ref(input))?.pop().unwrap_or(nothing))
    }

    /// Scores several completions, in their order. Rewards that wait for something outside do so at the same time.
    ///
    /// # Errors
    /// A reward fails, a score or a sum is not finite, or scores or token scores are not as many as they must be.
    pub fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Scored>, RewardError> {
        let parts = self.score_parts(inputs)?;
        let mut tokens = Vec::with_capacity(self.parts.len());
        for (_, reward) in &self.parts {
            let of_inputs = inputs.par_iter().map(|input| reward.token_scores(input)).collect::<Result<Vec<_>, _>>()?;
            tokens.push(of_inputs);
        }
        let mut scored = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            let parts: Vec<Option<f64>> = parts.iter().map(|scores| scores[index]).collect();
            let tokens = tokens.iter_mut().map(|scores| scores[index].take());
            scored.push(self.sum_up(input, parts, tokens)?);
        }
        Ok(scored)
    }

    /// The scores of each reward, in the order of the rewards.
    fn score_parts(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Vec<Option<f64>>>, RewardError> {
        let score = |reward: &Arc<dyn Reward>| {
            let scores = reward.score_batch(inputs)?;
            let (reward, given, wanted) = (reward.name().to_string(), scores.len(), inputs.len());
            if given == wanted { Ok(scores) } else { Err(RewardError::ScoreCount { reward, given, wanted }) }
        };
        thread::scope(|scope| {
            let score = &score;
            // Those that wait are sent off first; the others have the calling thread and the pool.
            let waiting: Vec<_> = self
                .parts
                .iter()
                .map(|(_, reward)| reward.is_external().then(|| scope.spawn(move || score(reward))))
                .collect();
            let own: Vec<_> =
                self.parts.iter().map(|(_, reward)| (!reward.is_external()).then(|| score(reward))).collect();
            let all = waiting.into_iter().zip(own).map(|(waiting, own)| match (waiting, own) {
                (Some(waiting), _) => waiting.join().unwrap_or_else(|panic| resume_unwind(panic)),
                (None, own) => own.unwrap_or_else(|| Ok(Vec::new())),
            });
            all.collect()
        })
    }

    /// The weighted sums of one completion's scores.
    fn sum_up(
        &self,
        input: &RewardInput<'_>,
        parts: Vec<Option<f64>>,
        tokens: impl Iterator<Item = Option<TokenScores>>,
    ) -> Result<Scored, RewardError> {
        let mut total = None;
        let (mut token_values, mut keep) = (Vec::new(), Vec::new());
        for (((weight, reward), score), tokens) in self.parts.iter().zip(&parts).zip(tokens) {
            if let Some(score) = *score {
                if !score.is_finite() {
                    let (reward, completion) = (reward.name().to_string(), beginning(input.completion));
                    return Err(RewardError::NonFinite { reward, line: input.line, score, completion });
                }
                total = Some(total.unwrap_or(0.0) + weight * score);
            }
            if let Some(scores) = tokens {
                check_tokens(reward.name(), &scores, input)?;
                add_values(&mut token_values, *weight, &scores.values);
                keep_less(&mut keep, scores.keep);
            }
        }
        let sums = total.iter().chain(token_values.iter().flatten());
        match sums.copied().find(|sum| !sum.is_finite()) {
            Some(total) => {
                let completion = beginning(input.completion);
                Err(RewardError::NonFiniteTotal { line: input.line, total, completion })
            }
            None => Ok(Scored { total, parts, token_values, keep }),
        }
    }

    /// Checks quickly that what the rewards need from outside is there: programs, keys.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), RewardError> {
        self.parts.iter().try_for_each(|(_, reward)| reward.check())
    }

    /// Lets every reward load what it needs beside its input.
    ///
    /// # Errors
    /// What a reward needs is missing or cannot be used.
    pub fn prepare(&self, compute: &Compute) -> Result<(), RewardError> {
        self.parts.iter().try_for_each(|(_, reward)| reward.prepare(compute))
    }

    /// Lets the rewards get ready. After `is_stopping` says so, those that wait for something outside try nothing
    /// again.
    ///
    /// # Errors
    /// A reward cannot get ready.
    pub fn start(&self, is_stopping: &IsStopping) -> Result<(), RewardError> {
        self.parts.iter().try_for_each(|(_, reward)| reward.start(is_stopping))
    }

    /// Checks that every reward can use every row, before a run starts.
    ///
    /// # Errors
    /// [`RewardError::BadRow`] for the first row that a reward cannot use.
    pub fn check_rows(&self, rows: &[Row]) -> Result<(), RewardError> {
        for row in rows {
            for (_, reward) in &self.parts {
                reward.check_row(&row.columns).map_err(|reason| RewardError::BadRow {
                    place: row.place.clone().into(),
                    reward: reward.name().to_string(),
                    reason,
                })?;
            }
        }
        Ok(())
    }
}

/// Token scores are finite, and one a completion id or none.
fn check_tokens(reward: &str, scores: &TokenScores, input: &RewardInput<'_>) -> Result<(), RewardError> {
    let (reward, line, tokens) = (reward.to_string(), input.line, input.completion_ids.len());
    for (what, given) in [("scores", scores.values.len()), ("marks to keep", scores.keep.len())] {
        if given != 0 && given != tokens {
            return Err(RewardError::TokenCount { reward, line, what, given, tokens });
        }
    }
    let mut entries = scores.values.iter().enumerate().filter_map(|(token, score)| Some((token, (*score)?)));
    match entries.find(|(_, score)| !score.is_finite()) {
        Some((token, score)) => Err(RewardError::NonFiniteToken { reward, line, token, score }),
        None => Ok(()),
    }
}

/// Adds `weight` times `values` to the sums, which are empty until a reward gives values.
fn add_values(sums: &mut Vec<Option<f64>>, weight: f64, values: &[Option<f64>]) {
    sums.resize(sums.len().max(values.len()), None);
    for (sum, value) in sums.iter_mut().zip(values) {
        if let Some(value) = value {
            *sum = Some(sum.unwrap_or(0.0) + weight * value);
        }
    }
}

/// Takes away what `marks` do not keep; `keep` is empty until a reward gives marks.
fn keep_less(keep: &mut Vec<bool>, marks: Vec<bool>) {
    if keep.is_empty() {
        *keep = marks;
    } else {
        keep.iter_mut().zip(marks).for_each(|(keep, mark)| *keep &= mark);
    }
}

impl std::fmt::Debug for WeightedRewards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.parts.iter().map(|(weight, reward)| (weight, reward.name()))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FnReward, TokenFnReward};
    use super::*;
    use crate::data::Columns;

    struct Silent;

    impl Reward for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }

        fn score(&self, _: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
            Ok(None)
        }
    }

    fn score(rewards: &WeightedRewards) -> Result<Scored, RewardError> {
        let columns = Columns::new();
        rewards.score(&RewardInput {
            prompt: "",
            messages: None,
            completion: "ab",
            completion_ids: &[1],
            columns: &columns,
            line: 7,
        })
    }

    #[test]
    fn the_sum_leaves_out_what_has_no_score() {
        let rewards = WeightedRewards::default()
            .with(2.0, FnReward::new("length", |input| input.completion.len() as f64))
            .with(5.0, Silent)
            .with(-0.5, FnReward::new("one", |_| 1.0));
        let scored = score(&rewards).unwrap();
        let parts = vec![Some(2.0), None, Some(1.0)];
        assert_eq!(scored, Scored { total: Some(3.5), parts, token_values: vec![], keep: vec![] });
        assert_eq!(score(&WeightedRewards::single(Silent)).unwrap().total, None);
        assert_eq!(rewards.names().collect::<Vec<_>>(), ["length", "silent", "one"]);
    }

    /// Scores its completions by a rule, all at once, and says on which thread.
    struct Batched {
        is_external: bool,
        score: fn(usize) -> f64,
        cut: usize,
        thread: std::sync::Mutex<Option<thread::ThreadId>>,
    }

    impl Reward for Arc<Batched> {
        fn name(&self) -> &'static str {
            "batched"
        }

        fn score(&self, _: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
            panic!("completions are scored together")
        }

        fn score_batch(&self, inputs: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
            *self.thread.lock().unwrap() = Some(thread::current().id());
            let scores = inputs.iter().map(|input| Some((self.score)(input.completion.len())));
            Ok(scores.take(inputs.len() - self.cut).collect())
        }

        fn is_external(&self) -> bool {
            self.is_external
        }
    }

    fn batched(is_external: bool, score: fn(usize) -> f64, cut: usize) -> Arc<Batched> {
        Arc::new(Batched { is_external, score, cut, thread: std::sync::Mutex::default() })
    }

    fn score_words(rewards: &WeightedRewards) -> Result<Vec<Scored>, RewardError> {
        let columns = Columns::new();
        let input = |completion| super::super::testing::input(completion, &[], &columns);
        rewards.score_batch(&["a", "bb", "ccc"].map(input))
    }

    /// Those that wait have a thread each; sums are in the order of the rewards, and of the completions.
    #[test]
    fn rewards_that_wait_do_so_beside_the_others() {
        let (here, there) = (batched(false, |n| n as f64, 0), batched(true, |n| 10.0 * n as f64, 0));
        let rewards = WeightedRewards::default()
            .with(1.0, Arc::clone(&there))
            .with(2.0, FnReward::new("one", |_| 1.0))
            .with(3.0, Arc::clone(&here));
        let scored = score_words(&rewards).unwrap();
        let totals: Vec<_> = scored.iter().map(|scored| scored.total.unwrap()).collect();
        assert_eq!(totals, [15.0, 28.0, 41.0]);
        assert_eq!(scored[1].parts, [Some(20.0), Some(1.0), Some(2.0)]);
        let thread_of = |reward: &Batched| reward.thread.lock().unwrap().unwrap();
        assert_eq!(thread_of(&here), thread::current().id());
        assert_ne!(thread_of(&there), thread::current().id());
        assert!(score_words(&WeightedRewards::default()).unwrap().iter().all(|scored| scored.total.is_none()));
    }

    #[test]
    fn the_first_reward_that_fails_is_told() {
        let nan = || batched(true, |_| f64::NAN, 0);
        let rewards = WeightedRewards::default().with(1.0, batched(false, |_| 1.0, 1)).with(1.0, nan());
        let error = score_words(&rewards).unwrap_err();
        assert_eq!(error.to_string(), "the reward `batched` gave 2 scores for 3 completions");
        let error = score_words(&WeightedRewards::single(nan())).unwrap_err();
        assert!(
            error.to_string().starts_with("the reward `batched` gave NaN for a completion of line 1: \"a\""),
            "{error}"
        );
    }

    #[test]
    fn a_score_that_is_not_finite_names_reward_line_and_completion() {
        let error = score(&WeightedRewards::single(FnReward::new("ratio", |_| f64::NAN))).unwrap_err();
        assert_eq!(error.to_string(), "the reward `ratio` gave NaN for a completion of line 7: \"ab\"");
        let huge = WeightedRewards::default().with(1e300, FnReward::new("huge", |_| 1e300));
        assert!(matches!(score(&huge), Err(RewardError::NonFiniteTotal { .. })));
    }

    fn tokens(values: &[Option<f64>], keep: &[bool]) -> impl Reward + 'static {
        let scores = TokenScores { values: values.to_vec(), keep: keep.to_vec() };
        TokenFnReward::new("tokens", move |_| scores.clone())
    }

    fn score_three_tokens(rewards: &WeightedRewards) -> Result<Scored, RewardError> {
        let columns = Columns::new();
        let ids = [1, 2, 3];
        rewards.score(&RewardInput {
            prompt: "",
            messages: None,
            completion: "",
            completion_ids: &ids,
            columns: &columns,
            line: 7,
        })
    }

    /// Values add by weight where they are given, a token stays only where all keep it, and the whole has no score.
    #[test]
    fn token_scores_are_summed_and_marks_joined() {
        let rewards = WeightedRewards::default()
            .with(2.0, tokens(&[Some(1.0), None, None], &[]))
            .with(1.0, FnReward::new("whole", |_| 4.0))
            .with(-1.0, tokens(&[Some(0.5), Some(3.0), None], &[true, true, false]))
            .with(1.0, tokens(&[], &[false, true, true]));
        let scored = score_three_tokens(&rewards).unwrap();
        assert_eq!(scored.total, Some(4.0));
        assert_eq!(scored.parts, [None, Some(4.0), None, None]);
        assert_eq!(scored.token_values, [Some(1.5), Some(-3.0), None]);
        assert_eq!(scored.keep, [false, true, false]);
    }

    #[test]
    fn token_scores_of_the_wrong_number_or_size_name_reward_and_line() {
        let message = |values: &[Option<f64>], keep: &[bool]| {
            score_three_tokens(&WeightedRewards::single(tokens(values, keep))).unwrap_err().to_string()
        };
        let of_line = "for a completion of line 7, which has 3 tokens";
        assert_eq!(message(&[None; 2], &[]), format!("the reward `tokens` gave 2 token scores {of_line}"));
        assert_eq!(message(&[], &[true; 4]), format!("the reward `tokens` gave 4 token marks to keep {of_line}"));
        let infinite = [None, Some(f64::INFINITY), None];
        assert_eq!(message(&infinite, &[]), "the reward `tokens` gave inf for token 1 of a completion of line 7");
        let huge = [Some(1e300), None, None];
        let rewards = WeightedRewards::default().with(1e300, tokens(&huge, &[]));
        assert!(matches!(score_three_tokens(&rewards), Err(RewardError::NonFiniteTotal { .. })));
    }
}
