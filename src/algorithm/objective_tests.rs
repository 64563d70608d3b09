//! Tests of the policy objective: finite differences, the three-token policy, cutting into micro-batches.

use proptest::prelude::*;

use super::*;
use crate::algorithm::{AdvantageEstimator, ScaleRewards, compute_advantages, subtract_kl_penalty};
use crate::rng::{Stream, uniform};

const LOSS_TYPES: [LossType; 4] = [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo];
const ESTIMATORS: [KlEstimator; 3] = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3];

/// A micro-batch that owns its arrays.
#[derive(Debug, Clone)]
struct Rows {
    logprobs: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    ranges: Vec<Range<usize>>,
    advantages: Vec<f64>,
    mask: Vec<bool>,
}

impl Rows {
    /// Rows of the given lengths with log-ratios well inside, below and above the clip bounds.
    fn new(lengths: &[usize], seed: u64) -> Self {
        let draw = |kind: u64, at: usize| uniform(seed, Stream::Data, [kind, at as u64, 0, 0]);
        let mut start = 0;
        let ranges: Vec<_> = lengths
            .iter()
            .map(|length| {
                let range = start..start + length;
                start += length;
                range
            })
            .collect();
        let logprobs: Vec<f64> = (0..start).map(|t| -3.0 * draw(0, t)).collect();
        // Kinks lie at ln 0.8 = -0.22, ln 1.3 = 0.26 and ln 1.7 = 0.53: finite differences need a distance from them.
        let log_ratios = [-0.6, -0.3, -0.1, 0.0, 0.1, 0.4, 0.8];
        let shift = |t: usize| log_ratios[(draw(1, t) * 7.0) as usize] + 0.05 * draw(2, t);
        Self {
            old: logprobs.iter().enumerate().map(|(t, l)| l - shift(t)).collect(),
            reference: logprobs.iter().enumerate().map(|(t, l)| l + draw(3, t) - 0.5).collect(),
            advantages: (0..lengths.len()).map(|row| 4.0 * draw(4, row) - 2.0).collect(),
            // The second row is left out as a whole.
            mask: ranges.iter().enumerate().flat_map(|(row, range)| range.clone().map(move |_| row != 1)).collect(),
            logprobs,
            ranges,
        }
    }

    fn batch(&self) -> TokenBatch<'_> {
        TokenBatch {
            logprobs: &self.logprobs,
            old_logprobs: Some(&self.old),
            ref_logprobs: Some(&self.reference),
            entropies: None,
            rows: &self.ranges,
            advantages: &self.advantages,
            token_advantages: None,
            completion_mask: &self.mask,
            policy_mask: None,
        }
    }
}

fn whole_step(batch: &TokenBatch, micro_batches: usize) -> Denominators {
    Denominators { rows: batch.rows.len(), active_tokens: batch.active_tokens(), micro_batches }
}

#[test]
fn gradients_match_finite_differences() {
    let step = 1e-6;
    let rows = Rows::new(&[5, 3, 0, 9, 1], 7);
    let denominators = whole_step(&rows.batch(), 2);
    let mut compared = 0;
    for loss_type in LOSS_TYPES {
        for kl_estimator in ESTIMATORS {
            for (beta, epsilon_high, delta, gamma) in
                [(0.0, 0.2, None, 1.0), (0.3, 0.3, None, 1.0), (0.3, 0.3, Some(1.7), 0.9), (0.0, 0.3, Some(1.7), 1.0)]
            {
                let config = ObjectiveConfig {
                    loss_type,
                    epsilon: 0.2,
                    epsilon_high,
                    delta,
                    beta,
                    kl_estimator,
                    max_completion_length: 16,
                    gamma,
                    ..ObjectiveConfig::default()
                };
                let grad = compute_objective(&rows.batch(), &config, &denominators).unwrap().grad;
                for (t, slope) in grad.iter().enumerate() {
                    let loss = |change: f64| {
                        let mut moved = rows.clone();
                        moved.logprobs[t] += change;
                        compute_objective(&moved.batch(), &config, &denominators).unwrap().loss
                    };
                    let numeric = (loss(step) - loss(-step)) / (2.0 * step);
                    assert!((numeric - slope).abs() < 1e-8, "{config:?} token {t}: {numeric} {slope}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 4 * 3 * 4 * 18);
}

#[test]
fn on_policy_is_a_ratio_of_one_with_gradient() {
    let rows = Rows::new(&[4, 2, 6], 3);
    let config = ObjectiveConfig::default();
    let same = TokenBatch { old_logprobs: Some(&rows.logprobs), ..rows.batch() };
    let none = TokenBatch { old_logprobs: None, ..rows.batch() };
    let denominators = whole_step(&none, 1);
    let (a, b) = (compute_objective(&same, &config, &denominators), compute_objective(&none, &config, &denominators));
    assert_eq!(a, b);
    assert!(b.unwrap().grad[..4].iter().all(|slope| slope.abs() > 0.0));
}

#[test]
fn a_row_that_is_left_out_changes_nothing_but_the_number_of_rows() {
    let rows = Rows::new(&[4, 3, 6], 5);
    let kept = Rows {
        ranges: vec![0..4, 4..10],
        logprobs: [&rows.logprobs[..4], &rows.logprobs[7..]].concat(),
        old: [&rows.old[..4], &rows.old[7..]].concat(),
        reference: [&rows.reference[..4], &rows.reference[7..]].concat(),
        advantages: vec![rows.advantages[0], rows.advantages[2]],
        mask: vec![true; 10],
    };
    for loss_type in LOSS_TYPES {
        let config = ObjectiveConfig { loss_type, ..ObjectiveConfig::default() };
        let denominators = whole_step(&rows.batch(), 1);
        let a = compute_objective(&rows.batch(), &config, &denominators).unwrap();
        let b = compute_objective(&kept.batch(), &config, &denominators).unwrap();
        assert!((a.loss - b.loss).abs() < 1e-14);
        assert_eq!(a.stats, b.stats);
        assert_eq!(a.grad[4..7], [0.0; 3]);
        assert_eq!([&a.grad[..4], &a.grad[7..]].concat(), b.grad);
    }
}

#[test]
fn clip_metrics_count_tokens_and_rows() {
    let old = [-1.0; 6];
    let logprobs = [2.0f64.ln() - 1.0, -1.0, 0.5f64.ln() - 1.0, 0.5f64.ln() - 1.0, 2.0f64.ln() - 1.0, -1.0];
    let batch = TokenBatch {
        logprobs: &logprobs,
        old_logprobs: Some(&old),
        ref_logprobs: None,
        entropies: None,
        rows: &[0..3, 3..6, 6..6],
        advantages: &[1.0, -1.0, 1.0],
        token_advantages: None,
        completion_mask: &[true; 6],
        policy_mask: None,
    };
    let config = ObjectiveConfig { beta: 0.0, ..ObjectiveConfig::default() };
    let stats = compute_objective(&batch, &config, &whole_step(&batch, 1)).unwrap().stats;
    assert_eq!((stats.low_clipped, stats.high_clipped, stats.region_clipped(), stats.active_tokens), (1, 1, 2, 6));
    assert_eq!((stats.low_min, stats.high_max), (Some(0.0), Some(1.0 / 3.0)));
    assert!((stats.ratio_sum - 7.0).abs() < 1e-12);
}

#[test]
fn gamma_weighs_the_last_token_most() {
    let batch = TokenBatch {
        logprobs: &[-1.0; 3],
        old_logprobs: None,
        ref_logprobs: None,
        entropies: None,
        rows: std::slice::from_ref(&(0..3)),
        advantages: &[2.0],
        token_advantages: None,
        completion_mask: &[true; 3],
        policy_mask: None,
    };
    let config = ObjectiveConfig { beta: 0.0, gamma: 0.5, ..ObjectiveConfig::default() };
    let objective = compute_objective(&batch, &config, &whole_step(&batch, 1)).unwrap();
    for (slope, expected) in objective.grad.iter().zip([-0.5, -1.0, -2.0]) {
        assert!((slope - expected / 3.0).abs() < 1e-12);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let rows = Rows::new(&[2, 2], 1);
    let config = ObjectiveConfig::default();
    let denominators = whole_step(&rows.batch(), 1);
    let check = |batch: TokenBatch| compute_objective(&batch, &config, &denominators).unwrap_err();
    let short = AlgorithmError::Length { name: "old_logprobs", expected: 4, got: 3 };
    assert_eq!(check(TokenBatch { old_logprobs: Some(&rows.old[1..]), ..rows.batch() }), short);
    let missing = AlgorithmError::MissingReference { beta: "0.04".into() };
    assert_eq!(check(TokenBatch { ref_logprobs: None, ..rows.batch() }), missing);
    let outside = AlgorithmError::Range { row: 1, start: 2, end: 5, tokens: 4 };
    assert_eq!(check(TokenBatch { rows: &[0..2, 2..5], ..rows.batch() }), outside);
}

/// A policy over three tokens, one row a token, each row weighed by its probability: the mean gradient over samples
/// without sampling noise.
struct ThreeTokens {
    policy: [f64; 3],
    reference: [f64; 3],
}

impl ThreeTokens {
    /// Mean over the policy's samples of `slope_of_sample * d logprob / d logits`.
    fn mean_gradient(&self, slopes: &[f64]) -> [f64; 3] {
        std::array::from_fn(|logit| {
            (0..3)
                .map(|token| {
                    let indicator = f64::from(u8::from(token == logit));
                    self.policy[token] * slopes[token] * (indicator - self.policy[logit])
                })
                .sum()
        })
    }

    /// The mean gradient of `loss` of a batch of the three tokens, each row's share weighed by its probability.
    fn objective_gradient(&self, estimator: KlEstimator, beta: f64, advantages: &[f64]) -> [f64; 3] {
        let (logprobs, ref_logprobs) = (self.policy.map(f64::ln), self.reference.map(f64::ln));
        let batch = TokenBatch {
            logprobs: &logprobs,
            old_logprobs: None,
            ref_logprobs: Some(&ref_logprobs),
            entropies: None,
            rows: &[0..1, 1..2, 2..3],
            advantages,
            token_advantages: None,
            completion_mask: &[true; 3],
            policy_mask: None,
        };
        let config = ObjectiveConfig { beta, kl_estimator: estimator, ..ObjectiveConfig::default() };
        let objective = compute_objective(&batch, &config, &whole_step(&batch, 1)).unwrap();
        // Each row carries the weight 1 / 3; the expectation wants the row's probability instead.
        let slopes: Vec<f64> = objective.grad.iter().map(|slope| slope * 3.0).collect();
        self.mean_gradient(&slopes)
    }

    /// d KL(policy || reference) / d logits.
    fn reverse_kl_gradient(&self) -> [f64; 3] {
        let log_ratio: [f64; 3] = std::array::from_fn(|token| (self.policy[token] / self.reference[token]).ln());
        let kl: f64 = (0..3).map(|token| self.policy[token] * log_ratio[token]).sum();
        std::array::from_fn(|token| self.policy[token] * (log_ratio[token] - kl))
    }

    /// d KL(reference || policy) / d logits.
    fn forward_kl_gradient(&self) -> [f64; 3] {
        std::array::from_fn(|token| self.policy[token] - self.reference[token])
    }
}

#[test]
fn mean_gradient_of_each_kl_estimator_is_the_analytic_one() {
    let beta = 0.7;
    let policies = ThreeTokens { policy: [0.5, 0.3, 0.2], reference: [0.2, 0.3, 0.5] };
    let k2 = policies.objective_gradient(KlEstimator::K2, beta, &[0.0; 3]);
    let k3 = policies.objective_gradient(KlEstimator::K3, beta, &[0.0; 3]);
    let mut rewards = [Some(0.0); 3];
    let (old, reference) = (policies.policy.map(f64::ln), policies.reference.map(f64::ln));
    subtract_kl_penalty(&mut rewards, &old, &reference, &[0..1, 1..2, 2..3], &[true; 3], beta).unwrap();
    let penalised =
        compute_advantages(&rewards, 3, AdvantageEstimator::Group(ScaleRewards::None), None).unwrap().advantages;
    let k1 = policies.objective_gradient(KlEstimator::K1, beta, &penalised);
    let (reverse, forward) = (policies.reverse_kl_gradient(), policies.forward_kl_gradient());
    for (name, got, expected) in [("k1", k1, reverse), ("k2", k2, reverse), ("k3", k3, forward)] {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - beta * expected).abs() < 1e-12, "{name}: {got} {}", beta * expected);
        }
        assert!(got.iter().any(|slope| slope.abs() > 0.01), "{name} is zero");
    }
}

proptest! {
    #[test]
    fn cutting_into_micro_batches_changes_nothing(
        lengths in prop::collection::vec(0usize..9, 2..8),
        cut in 0usize..8,
        seed in 0u64..1000,
        loss_type in prop::sample::select(vec![LossType::Grpo, LossType::DrGrpo, LossType::Dapo]),
    ) {
        let rows = Rows::new(&lengths, seed);
        let config = ObjectiveConfig { loss_type, max_completion_length: 8, ..ObjectiveConfig::default() };
        let whole = compute_objective(&rows.batch(), &config, &whole_step(&rows.batch(), 1)).unwrap();
        let cut = cut.min(lengths.len());
        let mut loss = 0.0;
        let mut grad = vec![0.0; rows.logprobs.len()];
        let mut stats = ObjectiveStats::default();
        for part in [0..cut, cut..lengths.len()] {
            let batch = TokenBatch {
                rows: &rows.ranges[part.clone()],
                advantages: &rows.advantages[part],
                ..rows.batch()
            };
            let share = compute_objective(&batch, &config, &whole_step(&rows.batch(), 2)).unwrap();
            loss += share.loss;
            grad.iter_mut().zip(&share.grad).for_each(|(sum, slope)| *sum += slope);
            stats.merge(&share.stats);
        }
        prop_assert!((loss - whole.loss).abs() < 1e-12);
        // Each token belongs to one micro-batch, so its gradient is the same bits.
        prop_assert_eq!(grad, whole.grad);
        prop_assert_eq!(
            (stats.active_tokens, stats.low_clipped, stats.high_clipped, stats.low_min, stats.high_max),
            (
                whole.stats.active_tokens,
                whole.stats.low_clipped,
                whole.stats.high_clipped,
                whole.stats.low_min,
                whole.stats.high_max,
            )
        );
        prop_assert!((stats.kl_sum - whole.stats.kl_sum).abs() < 1e-12);
    }
}
