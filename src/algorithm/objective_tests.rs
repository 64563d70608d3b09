//! Tests of the policy objective: finite differences, masks, counts, cutting into micro-batches.

use proptest::prelude::*;

use super::*;
use crate::rng::{Stream, uniform};

const LOSS_TYPES: [LossType; 7] = [
    LossType::Grpo,
    LossType::Bnpo,
    LossType::DrGrpo,
    LossType::Dapo,
    LossType::Cispo,
    LossType::Sapo,
    LossType::Reinforce,
];
const LEVELS: [ImportanceSamplingLevel; 4] = [
    ImportanceSamplingLevel::Token,
    ImportanceSamplingLevel::Sequence,
    ImportanceSamplingLevel::SequenceSum,
    ImportanceSamplingLevel::None,
];
/// Each estimator, and whether it is multiplied by the ratio.
const ESTIMATORS: [(KlEstimator, bool); 5] = [
    (KlEstimator::K1, false),
    (KlEstimator::K2, false),
    (KlEstimator::K3, false),
    (KlEstimator::K3, true),
    (KlEstimator::SequenceSquared, false),
];

/// A micro-batch that owns its arrays.
#[derive(Debug, Clone)]
struct Rows {
    logprobs: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    ranges: Vec<Range<usize>>,
    advantages: Vec<f64>,
    entropies: Vec<f64>,
    token_advantages: Vec<f64>,
    mask: Vec<bool>,
    policy_mask: Vec<bool>,
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
            entropies: (0..start).map(|t| 2.0 * draw(5, t)).collect(),
            token_advantages: (0..start).map(|t| draw(6, t) - 0.5).collect(),
            policy_mask: (0..start).map(|t| draw(7, t) < 0.7).collect(),
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

    /// With per-token advantages, entropies, a policy mask, and holes in the completion mask.
    fn full_batch(&self) -> TokenBatch<'_> {
        TokenBatch {
            entropies: Some(&self.entropies),
            token_advantages: Some(&self.token_advantages),
            policy_mask: Some(&self.policy_mask),
            ..self.batch()
        }
    }
}

fn whole_step(batch: &TokenBatch, micro_batches: usize) -> Denominators {
    Denominators { rows: batch.rows.len(), active_tokens: batch.active_tokens(), micro_batches }
}

/// The slope of the loss by finite differences when token t's log-prob is moved. The ratio of `cispo` is a constant in
/// its loss, so there the old log-prob moves along.
fn numeric_slope(rows: &Rows, t: usize, config: &ObjectiveConfig, denominators: &Denominators, is_full: bool) -> f64 {
    let step = 1e-6;
    let loss = |change: f64| {
        let mut moved = rows.clone();
        moved.logprobs[t] += change;
        if config.loss_type == LossType::Cispo {
            moved.old[t] += change;
        }
        let batch = if is_full { moved.full_batch() } else { moved.batch() };
        compute_objective(&batch, config, denominators).unwrap().loss
    };
    (loss(step) - loss(-step)) / (2.0 * step)
}

#[test]
fn gradients_match_finite_differences() {
    let mut rows = Rows::new(&[5, 3, 0, 9, 1], 7);
    // Holes within rows, as the answers of a tool would leave.
    rows.mask[2] = false;
    rows.mask[11] = false;
    let denominators = whole_step(&rows.batch(), 2);
    let mut compared = 0;
    for loss_type in LOSS_TYPES {
        for importance_sampling_level in LEVELS {
            // The ratio that a corrected KL is differentiated by is held fixed in the differences of `cispo`.
            let is_fixed = |corrected| corrected && loss_type == LossType::Cispo;
            for (kl_estimator, corrected) in ESTIMATORS.into_iter().filter(|(_, corrected)| !is_fixed(*corrected)) {
                for (beta, epsilon_high, delta, gamma, is_full) in [
                    (0.0, 0.2, None, 1.0, false),
                    (0.3, 0.3, None, 1.0, false),
                    (0.3, 0.3, Some(1.7), 0.9, true),
                    (0.0, 0.3, Some(1.7), 1.0, true),
                ] {
                    let config = ObjectiveConfig {
                        loss_type,
                        importance_sampling_level,
                        epsilon: 0.2,
                        epsilon_high: if loss_type == LossType::Cispo { 1.0 + epsilon_high } else { epsilon_high },
                        delta,
                        beta,
                        kl_estimator,
                        use_bias_correction_kl: corrected,
                        sapo_temperature_pos: 1.0,
                        sapo_temperature_neg: 1.5,
                        entropy_coef: if is_full { 0.01 } else { 0.0 },
                        max_completion_length: 16,
                        gamma,
                    };
                    let batch = if is_full { rows.full_batch() } else { rows.batch() };
                    let grad = compute_objective(&batch, &config, &denominators).unwrap().grad;
                    for (t, slope) in grad.iter().enumerate() {
                        let numeric = numeric_slope(&rows, t, &config, &denominators, is_full);
                        let close = (numeric - slope).abs() < 1e-8 * slope.abs().max(1.0);
                        assert!(close, "{config:?} token {t}: {numeric} {slope}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert_eq!(compared, (7 * 5 - 1) * 4 * 4 * 18);
}

#[test]
fn the_entropy_bonus_is_the_mean_over_active_tokens_and_has_its_gradient() {
    let rows = Rows::new(&[5, 3, 2], 8);
    let config = ObjectiveConfig { entropy_coef: 0.3, ..ObjectiveConfig::default() };
    let denominators = whole_step(&rows.batch(), 1);
    let with = compute_objective(&rows.full_batch(), &config, &denominators).unwrap();
    let without = ObjectiveConfig { entropy_coef: 0.0, ..config };
    let without = compute_objective(&rows.full_batch(), &without, &denominators).unwrap();
    let active = || rows.entropies.iter().zip(&rows.mask).filter(|(_, is)| **is).map(|(entropy, _)| entropy);
    let mean = active().sum::<f64>() / active().count() as f64;
    assert!((without.loss - with.loss - 0.3 * mean).abs() < 1e-12);
    assert_eq!((&without.grad, without.entropy_grad), (&with.grad, None));
    let expected: Vec<f64> = rows.mask.iter().map(|is| if *is { -0.3 / 7.0 } else { 0.0 }).collect();
    for (slope, expected) in with.entropy_grad.unwrap().iter().zip(expected) {
        assert!((slope - expected).abs() < 1e-15);
    }
}

/// The policy mask takes the policy term of a token away and nothing else: what is left is the KL penalty over the same
/// denominators, and the shares of clipped ratios are those of all tokens.
#[test]
fn a_policy_mask_leaves_penalty_and_denominators() {
    let rows = Rows::new(&[4, 2, 6], 9);
    let denominators = whole_step(&rows.batch(), 1);
    for loss_type in LOSS_TYPES {
        let config = ObjectiveConfig { loss_type, ..ObjectiveConfig::default() };
        let masked = TokenBatch { policy_mask: Some(&[false; 12]), ..rows.batch() };
        let flat = TokenBatch { advantages: &[0.0; 3], ..rows.batch() };
        let masked = compute_objective(&masked, &config, &denominators).unwrap();
        let flat = compute_objective(&flat, &config, &denominators).unwrap();
        assert_eq!((masked.loss, &masked.grad), (flat.loss, &flat.grad), "{loss_type:?}");
        assert_eq!(masked.stats, compute_objective(&rows.batch(), &config, &denominators).unwrap().stats);
    }
}

/// In rows of one token the ratio of the row is that of the token.
#[test]
fn rows_of_one_token_have_the_same_ratio_at_every_level() {
    let rows = Rows::new(&[1; 9], 2);
    let denominators = whole_step(&rows.batch(), 1);
    for loss_type in LOSS_TYPES {
        let at = |importance_sampling_level| {
            let config = ObjectiveConfig { loss_type, importance_sampling_level, ..ObjectiveConfig::default() };
            compute_objective(&rows.batch(), &config, &denominators).unwrap()
        };
        let of_token = at(ImportanceSamplingLevel::Token);
        for level in [ImportanceSamplingLevel::Sequence, ImportanceSamplingLevel::SequenceSum] {
            let of_row = at(level);
            assert!((of_row.loss - of_token.loss).abs() < 1e-14, "{loss_type:?}");
            for (a, b) in of_row.grad.iter().zip(&of_token.grad) {
                assert!((a - b).abs() < 1e-14, "{loss_type:?}");
            }
            // The row that is left out still has a ratio, of 1.
            assert_eq!((of_row.stats.ratio_count, of_token.stats.ratio_count), (9, 8));
            assert_eq!(of_row.stats.high_clipped, of_token.stats.high_clipped);
        }
    }
}

#[test]
fn a_ratio_of_the_row_is_counted_once() {
    let old = [-1.0; 5];
    let logprobs = [-0.5, -0.9, -1.0, -2.0, -1.5];
    let batch = TokenBatch {
        logprobs: &logprobs,
        old_logprobs: Some(&old),
        ref_logprobs: Some(&old),
        entropies: None,
        rows: &[0..3, 3..5],
        advantages: &[1.0, -1.0],
        token_advantages: None,
        completion_mask: &[true; 5],
        policy_mask: None,
    };
    let stats = |importance_sampling_level, epsilon_high, kl_estimator| {
        let config =
            ObjectiveConfig { importance_sampling_level, epsilon_high, kl_estimator, ..ObjectiveConfig::default() };
        compute_objective(&batch, &config, &whole_step(&batch, 1)).unwrap().stats
    };
    // Mean log-ratios 0.2 and -0.75, sums 0.6 and -1.5.
    let mean = stats(ImportanceSamplingLevel::Sequence, 0.25, KlEstimator::K3);
    assert_eq!((mean.ratio_count, mean.low_clipped, mean.high_clipped), (2, 1, 0));
    let sum = stats(ImportanceSamplingLevel::SequenceSum, 0.25, KlEstimator::SequenceSquared);
    assert_eq!((sum.ratio_count, sum.low_clipped, sum.high_clipped, sum.kl_count), (2, 1, 1, 2));
    assert!((sum.kl_sum - 0.36 - 2.25).abs() < 1e-12);
    assert_eq!((sum.low_min, sum.high_max), (Some(0.0), Some(1.0)));
    let none = stats(ImportanceSamplingLevel::None, 0.25, KlEstimator::K3);
    assert_eq!((none.ratio_count, none.low_min, none.kl_count), (0, None, 5));
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
        ..rows.clone()
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
    let mask = AlgorithmError::Length { name: "completion_mask", expected: 4, got: 2 };
    assert_eq!(check(TokenBatch { completion_mask: &[true; 2], ..rows.batch() }), mask);
    let mask = AlgorithmError::Length { name: "policy_mask", expected: 4, got: 2 };
    assert_eq!(check(TokenBatch { policy_mask: Some(&[true; 2]), ..rows.batch() }), mask);
    let bonus = ObjectiveConfig { entropy_coef: 0.1, ..config };
    let missing = AlgorithmError::MissingEntropies { entropy_coef: "0.1".into() };
    assert_eq!(compute_objective(&rows.batch(), &bonus, &denominators), Err(missing));
    let outside = AlgorithmError::Range { row: 1, start: 2, end: 5, tokens: 4 };
    assert_eq!(check(TokenBatch { rows: &[0..2, 2..5], ..rows.batch() }), outside);
}

proptest! {
    /// But for `bnpo`, which is defined by the cut.
    #[test]
    fn cutting_into_micro_batches_changes_nothing(
        lengths in prop::collection::vec(0usize..9, 2..8),
        cut in 0usize..8,
        seed in 0u64..1000,
        loss_type in prop::sample::select(LOSS_TYPES.iter().copied().filter(|t| *t != LossType::Bnpo).collect::<Vec<_>>()),
        importance_sampling_level in prop::sample::select(LEVELS.to_vec()),
        (kl_estimator, use_bias_correction_kl) in prop::sample::select(ESTIMATORS.to_vec()),
    ) {
        let rows = Rows::new(&lengths, seed);
        let config = ObjectiveConfig {
            loss_type,
            importance_sampling_level,
            kl_estimator,
            use_bias_correction_kl,
            entropy_coef: 0.01,
            max_completion_length: 8,
            ..ObjectiveConfig::default()
        };
        let whole = compute_objective(&rows.full_batch(), &config, &whole_step(&rows.batch(), 1)).unwrap();
        let cut = cut.min(lengths.len());
        let mut loss = 0.0;
        let (mut grad, mut entropy_grad) = (vec![0.0; rows.logprobs.len()], vec![0.0; rows.logprobs.len()]);
        let mut stats = ObjectiveStats::default();
        for part in [0..cut, cut..lengths.len()] {
            let batch = TokenBatch {
                rows: &rows.ranges[part.clone()],
                advantages: &rows.advantages[part],
                ..rows.full_batch()
            };
            let share = compute_objective(&batch, &config, &whole_step(&rows.batch(), 2)).unwrap();
            loss += share.loss;
            grad.iter_mut().zip(&share.grad).for_each(|(sum, slope)| *sum += slope);
            entropy_grad.iter_mut().zip(&share.entropy_grad.unwrap()).for_each(|(sum, slope)| *sum += slope);
            stats.merge(&share.stats);
        }
        prop_assert!((loss - whole.loss).abs() < 1e-12 * whole.loss.abs().max(1.0));
        // Each token belongs to one micro-batch, so its gradient is the same bits.
        prop_assert_eq!(grad, whole.grad);
        prop_assert_eq!(Some(entropy_grad), whole.entropy_grad);
        // Only a sum of floats may be rounded otherwise.
        let kl_sum = whole.stats.kl_sum;
        prop_assert!((stats.kl_sum - kl_sum).abs() < 1e-12 * kl_sum.abs().max(1.0));
        prop_assert_eq!(ObjectiveStats { kl_sum, ..stats }, whole.stats);
    }
}
