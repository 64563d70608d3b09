//! The objective and advantages equal TRL's, AdamW, schedules and clipping equal torch's and transformers'.
//!
//! The numbers to compare with were made by `scripts/make_trl_fixtures.py`, which names the versions and says how.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use candlewick::algorithm::{
    AdvantageEstimator, AlgorithmError, Denominators, DpoConfig, DpoLossType, DpoStats, ImportanceSamplingLevel,
    KlEstimator, LossType, Objective, ObjectiveConfig, ObjectiveStats, PairBatch, ScaleRewards, TokenBatch,
    compute_advantages, compute_dpo_objective, compute_objective, compute_token_advantages, entropy_threshold,
    subtract_kl_penalty,
};
use candlewick::ops::Weight;
use candlewick::optim::{AdamW, AdamWConfig, LrSchedule, LrSchedulerType, clip_factor, compute_grad_norm};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// For what TRL and torch compute in f32.
const SINGLE: f64 = 1e-6;
/// For what both sides compute in f64.
const DOUBLE: f64 = 1e-12;

fn load<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trl").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Asserts |a - b| <= tolerance * max(1, |b|) for each pair.
fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "{what} [{at}]: {got}, not {expected}");
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// The token range of each row in flat arrays.
fn to_ranges(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |length: &usize| {
        end += length;
        end - length..end
    };
    lengths.iter().map(range).collect()
}

#[derive(Deserialize)]
struct ObjectiveFixture {
    max_completion_length: usize,
    lengths: Vec<usize>,
    truncated: Vec<bool>,
    logprobs: Vec<f64>,
    old_logprobs: Vec<f64>,
    ref_logprobs: Vec<f64>,
    entropies: Option<Vec<f64>>,
    advantages: Vec<f64>,
    token_advantages: Option<Vec<f64>>,
    cases: Vec<ObjectiveCase>,
}

/// A case says what is unlike the default.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
struct ObjectiveCase {
    loss_type: LossType,
    importance_sampling_level: String,
    beta: f64,
    kl_estimator: KlEstimator,
    use_bias_correction_kl: bool,
    epsilon: f64,
    epsilon_high: f64,
    delta: Option<f64>,
    sapo_temperature_pos: f64,
    sapo_temperature_neg: f64,
    entropy_coef: f64,
    top_entropy_quantile: f64,
    gamma: f64,
    process: bool,
    micro_batches: usize,
    mask_truncated: bool,
    off_policy: bool,
    loss: f64,
    grad: Vec<f64>,
    entropy_grad: Option<Vec<f64>>,
    metrics: Option<BTreeMap<String, f64>>,
}

impl Default for ObjectiveCase {
    fn default() -> Self {
        Self {
            loss_type: LossType::Dapo,
            importance_sampling_level: "token".into(),
            beta: 0.0,
            kl_estimator: KlEstimator::K3,
            use_bias_correction_kl: false,
            epsilon: 0.2,
            epsilon_high: 0.2,
            delta: None,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            entropy_coef: 0.0,
            top_entropy_quantile: 1.0,
            gamma: 1.0,
            process: false,
            micro_batches: 1,
            mask_truncated: false,
            off_policy: true,
            loss: 0.0,
            grad: Vec::new(),
            entropy_grad: None,
            metrics: None,
        }
    }
}

impl ObjectiveCase {
    fn config(&self, max_completion_length: usize) -> ObjectiveConfig {
        ObjectiveConfig {
            loss_type: self.loss_type,
            importance_sampling_level: match self.importance_sampling_level.as_str() {
                "token" => ImportanceSamplingLevel::Token,
                "sequence" => ImportanceSamplingLevel::Sequence,
                "sequence_sum" => ImportanceSamplingLevel::SequenceSum,
                "none" => ImportanceSamplingLevel::None,
                other => panic!("{other}"),
            },
            epsilon: self.epsilon,
            epsilon_high: self.epsilon_high,
            delta: self.delta,
            beta: self.beta,
            kl_estimator: self.kl_estimator,
            use_bias_correction_kl: self.use_bias_correction_kl,
            sapo_temperature_pos: self.sapo_temperature_pos,
            sapo_temperature_neg: self.sapo_temperature_neg,
            entropy_coef: self.entropy_coef,
            max_completion_length,
            gamma: self.gamma,
        }
    }
}

/// Our loss of the whole step: the sum over micro-batches of equally many rows.
fn compute_step(fixture: &ObjectiveFixture, case: &ObjectiveCase) -> Result<Objective, AlgorithmError> {
    let rows = to_ranges(&fixture.lengths);
    let kept = fixture.truncated.iter().map(|truncated| !(case.mask_truncated && *truncated));
    let mask: Vec<bool> = kept.zip(&rows).flat_map(|(is, row)| std::iter::repeat_n(is, row.len())).collect();
    let policy_mask = (case.top_entropy_quantile < 1.0).then(|| {
        let entropies = fixture.entropies.as_ref().expect("the fixture has entropies");
        let active: Vec<f64> =
            entropies.iter().zip(&mask).filter(|(_, is)| **is).map(|(entropy, _)| *entropy).collect();
        let threshold = entropy_threshold(&active, case.top_entropy_quantile);
        entropies.iter().map(|entropy| *entropy >= threshold).collect::<Vec<bool>>()
    });
    let config = case.config(fixture.max_completion_length);
    let whole = TokenBatch {
        logprobs: &fixture.logprobs,
        old_logprobs: case.off_policy.then_some(fixture.old_logprobs.as_slice()),
        ref_logprobs: (case.beta > 0.0).then_some(fixture.ref_logprobs.as_slice()),
        entropies: fixture.entropies.as_deref(),
        rows: &rows,
        advantages: &fixture.advantages,
        token_advantages: fixture.token_advantages.as_deref().filter(|_| case.process),
        completion_mask: &mask,
        policy_mask: policy_mask.as_deref(),
    };
    let denominators =
        Denominators { rows: rows.len(), active_tokens: whole.active_tokens(), micro_batches: case.micro_batches };
    let zeros = || vec![0.0; whole.logprobs.len()];
    let mut step =
        Objective { loss: 0.0, grad: zeros(), entropy_grad: Some(zeros()), stats: ObjectiveStats::default() };
    let size = rows.len() / case.micro_batches;
    for first in (0..rows.len()).step_by(size) {
        let part = first..first + size;
        let micro_batch = TokenBatch { rows: &rows[part.clone()], advantages: &fixture.advantages[part], ..whole };
        let share = compute_objective(&micro_batch, &config, &denominators)?;
        step.loss += share.loss;
        step.grad.iter_mut().zip(&share.grad).for_each(|(sum, slope)| *sum += slope);
        let entropy_grad = step.entropy_grad.take().zip(share.entropy_grad);
        step.entropy_grad = entropy_grad.map(|(sum, share)| sum.iter().zip(share).map(|(a, b)| a + b).collect());
        step.stats.merge(&share.stats);
    }
    Ok(step)
}

/// Compares the metrics that TRL logs of a step with ours.
fn assert_metrics(what: &str, stats: &ObjectiveStats, metrics: &BTreeMap<String, f64>, loss_type: LossType) {
    let share = |count: u64| count as f64 / stats.ratio_count as f64;
    let ours = match loss_type {
        LossType::Sapo => Vec::new(),
        LossType::Cispo => vec![("cispo_clip_ratio", share(stats.high_clipped))],
        _ => vec![
            ("clip_ratio/low_mean", share(stats.low_clipped)),
            ("clip_ratio/high_mean", share(stats.high_clipped)),
            ("clip_ratio/region_mean", share(stats.region_clipped())),
            ("clip_ratio/low_min", stats.low_min.expect("rows were clipped or not")),
            ("clip_ratio/high_max", stats.high_max.expect("rows were clipped or not")),
        ],
    };
    let has_kl = metrics.contains_key("kl");
    assert_eq!(metrics.len(), ours.len() + usize::from(has_kl), "{what}");
    for (name, value) in ours {
        // TRL keeps these as f32.
        assert_close(&format!("{name} {what}"), &[value], &[metrics[name]], SINGLE);
    }
    if has_kl {
        assert_close(what, &[stats.kl_sum / stats.kl_count as f64], &[metrics["kl"]], DOUBLE);
    }
}

/// Compares each case of a file; returns how many ratios were clipped.
fn compare_objectives(fixture: &ObjectiveFixture) -> u64 {
    let mut clipped = 0;
    for case in &fixture.cases {
        let step = compute_step(fixture, case).expect("the fixture fits together");
        let what = format!("{case:?}");
        assert_close(&what, &[step.loss], &[case.loss], DOUBLE);
        assert_close(&what, &step.grad, &case.grad, DOUBLE);
        assert_eq!(step.entropy_grad.is_some(), case.entropy_grad.is_some(), "{what}");
        if let Some((got, expected)) = step.entropy_grad.zip(case.entropy_grad.as_ref()) {
            assert_close(&what, &got, expected, DOUBLE);
        }
        clipped += step.stats.region_clipped();
        // TRL counts tokens where advantages differ within a row, and we count the row's ratio.
        let is_of_row = case.importance_sampling_level.starts_with("sequence");
        if let Some(metrics) = case.metrics.as_ref().filter(|_| !(is_of_row && case.process)) {
            assert_eq!(metrics.contains_key("kl"), case.beta > 0.0);
            assert_metrics(&what, &step.stats, metrics, case.loss_type);
        }
    }
    clipped
}

#[test]
fn loss_gradient_and_metrics_equal_trl() {
    let fixture: ObjectiveFixture = load("objective.json");
    assert_eq!(fixture.cases.len(), 4 * 3 * 4 * 5);
    assert!(compare_objectives(&fixture) > 100, "the fixture hardly clips");
}

/// Sequence-level ratios, CISPO, SAPO, RLOO, the corrected KL, the entropy quantile and bonus, per-token advantages; and
/// what TRL does not have: the plain policy gradient, k2 and the squared KL of rows.
#[test]
fn variants_of_the_objective_equal_trl_or_autograd() {
    let fixture: ObjectiveFixture = load("variants.json");
    assert_eq!(fixture.cases.len(), 71);
    assert!(compare_objectives(&fixture) > 100, "the fixture hardly clips");
}

#[derive(Deserialize)]
struct AdvantageFixture {
    cases: Vec<AdvantageCase>,
    estimators: EstimatorFixture,
    process: ProcessFixture,
}

#[derive(Deserialize)]
struct EstimatorFixture {
    lengths: Vec<usize>,
    old_logprobs: Vec<f64>,
    ref_logprobs: Vec<f64>,
    completion_mask: Vec<bool>,
    cases: Vec<EstimatorCase>,
}

#[derive(Debug, Deserialize)]
struct EstimatorCase {
    estimator: String,
    rewards: Vec<Option<f64>>,
    num_generations: usize,
    #[serde(default)]
    beta: f64,
    greedy: Option<Vec<Option<f64>>>,
    min_reward: Option<f64>,
    advantages: Vec<f64>,
}

#[derive(Deserialize)]
struct ProcessFixture {
    lengths: Vec<usize>,
    values: Vec<Option<f64>>,
    cases: Vec<ProcessCase>,
}

#[derive(Debug, Deserialize)]
struct ProcessCase {
    num_generations: usize,
    scale_rewards: ScaleRewards,
    advantages: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct AdvantageCase {
    rewards: Vec<Option<f64>>,
    num_generations: usize,
    scale_rewards: ScaleRewards,
    advantages: Vec<f64>,
    reward: f64,
    reward_std: f64,
}

#[test]
fn advantages_equal_trl() {
    let fixture: AdvantageFixture = load("advantages.json");
    assert_eq!(fixture.cases.len(), 3 * 3 * 3);
    for case in &fixture.cases {
        let step = compute_advantages(
            &case.rewards,
            case.num_generations,
            AdvantageEstimator::Group(case.scale_rewards),
            None,
        )
        .unwrap();
        let what = format!("{case:?}");
        // TRL's Bessel correction is an f32 quotient.
        assert_close(&what, &step.advantages, &case.advantages, SINGLE);
        assert_close(&what, &[step.batch.mean, step.batch.std], &[case.reward, case.reward_std], SINGLE);
    }
}

/// RLOO with its KL penalty as TRL has it; `ReMax`, REINFORCE++ and RAFT as torch computes them.
#[test]
fn advantages_of_other_estimators_equal_trl_or_torch() {
    let fixture = load::<AdvantageFixture>("advantages.json").estimators;
    let rows = to_ranges(&fixture.lengths);
    assert_eq!(fixture.cases.len(), 3 * 3 * 6);
    for case in &fixture.cases {
        let what = format!("{case:?}");
        let estimator = match case.estimator.as_str() {
            "rloo" => AdvantageEstimator::LeaveOneOut,
            "remax" => AdvantageEstimator::Greedy,
            "reinforce++" => AdvantageEstimator::Whitened,
            "raft" => AdvantageEstimator::Best { min_reward: case.min_reward },
            other => panic!("{other}"),
        };
        let mut rewards = case.rewards.clone();
        let (old, reference) = (&fixture.old_logprobs, &fixture.ref_logprobs);
        subtract_kl_penalty(&mut rewards, old, reference, &rows, &fixture.completion_mask, case.beta).unwrap();
        let step = compute_advantages(&rewards, case.num_generations, estimator, case.greedy.as_deref()).unwrap();
        assert_close(&what, &step.advantages, &case.advantages, DOUBLE);
        let kept = |advantage: &f64| case.estimator != "raft" || *advantage > 0.5;
        assert_eq!(step.included, case.advantages.iter().map(kept).collect::<Vec<_>>(), "{what}");
    }
}

#[test]
fn token_advantages_equal_torch() {
    let fixture = load::<AdvantageFixture>("advantages.json").process;
    let rows = to_ranges(&fixture.lengths);
    assert_eq!(fixture.cases.len(), 2 * 3);
    for case in &fixture.cases {
        let got = compute_token_advantages(&fixture.values, &rows, case.num_generations, case.scale_rewards).unwrap();
        assert_close(&format!("{case:?}"), &got, &case.advantages, DOUBLE);
    }
}

#[derive(Deserialize)]
struct PreferenceFixture {
    lengths: Vec<usize>,
    logprobs: Vec<f64>,
    ref_logprobs: Vec<f64>,
    cases: Vec<PreferenceCase>,
}

#[derive(Debug, Deserialize)]
struct PreferenceCase {
    loss_type: DpoLossType,
    beta: f64,
    label_smoothing: f64,
    loss: f64,
    grad: Vec<f64>,
    metrics: BTreeMap<String, f64>,
}

/// Whole, and cut into micro-batches of one pair.
#[test]
fn preference_losses_equal_trl() {
    let fixture: PreferenceFixture = load("preference.json");
    let rows = to_ranges(&fixture.lengths);
    let pairs = rows.len() / 2;
    assert_eq!(fixture.cases.len(), 4 * 3 + 2 * 2);
    for (case, pairs_at_once) in fixture.cases.iter().flat_map(|case| [(case, pairs), (case, 1)]) {
        let what = format!("{pairs_at_once} at once: {case:?}");
        let PreferenceCase { loss_type, beta, label_smoothing, .. } = *case;
        let config = DpoConfig { loss_type, beta, label_smoothing };
        let (mut loss, mut grad, mut stats) = (0.0, vec![0.0; fixture.logprobs.len()], DpoStats::default());
        for rows in rows.chunks(2 * pairs_at_once) {
            let batch = PairBatch { logprobs: &fixture.logprobs, ref_logprobs: &fixture.ref_logprobs, rows };
            let (share, of_share) = compute_dpo_objective(&batch, &config, pairs).unwrap();
            loss += share.loss;
            grad.iter_mut().zip(&share.grad).for_each(|(sum, slope)| *sum += slope);
            stats.merge(&of_share);
        }
        assert_close(&what, &[loss], &[case.loss], DOUBLE);
        assert_close(&what, &grad, &case.grad, DOUBLE);
        let ours = [
            ("rewards/chosen", stats.chosen_sum),
            ("rewards/rejected", stats.rejected_sum),
            ("rewards/accuracies", stats.accurate as f64),
            ("rewards/margins", stats.margin_sum),
        ];
        for (name, sum) in ours {
            assert_close(&format!("{name} {what}"), &[sum / stats.pairs as f64], &[case.metrics[name]], DOUBLE);
        }
    }
}

#[derive(Deserialize)]
struct OptimizerFixture {
    start: Vec<Vec<f32>>,
    grads: Vec<Vec<Vec<f32>>>,
    cases: Vec<OptimizerCase>,
}

#[derive(Deserialize)]
struct OptimizerCase {
    schedule: LrSchedulerType,
    warmup_steps: u64,
    lr: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    lrs: Vec<f64>,
    norms: Vec<f64>,
    theta: BTreeMap<u64, Vec<Vec<f64>>>,
    m: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

#[test]
fn optimizer_schedule_and_clipping_equal_torch() {
    let fixture: OptimizerFixture = load("optimizer.json");
    let num_steps = fixture.grads.len() as u64;
    assert_eq!((num_steps, fixture.cases.len()), (50, 6));
    for case in &fixture.cases {
        let what = format!("{:?}, {} warm-up steps", case.schedule, case.warmup_steps);
        let schedule = LrSchedule { kind: case.schedule, warmup_steps: case.warmup_steps, num_steps };
        let config = AdamWConfig { weight_decay: case.weight_decay, ..AdamWConfig::default() };
        // The first parameter is decayed, as the fixture's parameter groups have it.
        let tensor = |values: &Vec<f32>| Tensor::new(&values[..], &Device::Cpu).unwrap();
        let weights: Vec<_> = fixture.start.iter().map(|theta| Weight::trainable(tensor(theta)).unwrap()).collect();
        let parameters = weights.iter().enumerate().map(|(index, weight)| (weight.value(), index == 0));
        let mut optimizer = AdamW::new(config, parameters).unwrap();
        let gradients: Vec<&Tensor> = weights.iter().filter_map(Weight::grad).collect();
        for (grads, (lr_expected, norm_expected)) in fixture.grads.iter().zip(case.lrs.iter().zip(&case.norms)) {
            let lr = case.lr * schedule.factor(optimizer.step);
            for (to, grad) in gradients.iter().zip(grads) {
                to.slice_set(&tensor(grad), 0, 0).unwrap();
            }
            let norm = compute_grad_norm(&gradients).unwrap();
            assert_close(&what, &[lr, norm], &[*lr_expected, *norm_expected], SINGLE);
            let step = optimizer.begin_step(lr, clip_factor(norm, Some(case.max_grad_norm)));
            for (index, weight) in weights.iter().enumerate() {
                optimizer.update(index, weight, &step).unwrap();
            }
            if let Some(expected) = case.theta.get(&optimizer.step) {
                for (weight, expected) in weights.iter().zip(expected) {
                    let theta = weight.value().to_vec1().unwrap();
                    assert_close(&format!("{what}, step {}", optimizer.step), &widen(&theta), expected, SINGLE);
                }
            }
        }
        for (got, expected) in optimizer.m.iter().zip(&case.m).chain(optimizer.v.iter().zip(&case.v)) {
            assert_close(&format!("{what}, moments"), &widen(&got.to_vec1().unwrap()), expected, SINGLE);
        }
    }
}
