//! The objective and advantages equal TRL's, AdamW, schedules and clipping equal torch's and transformers'.
//!
//! The numbers to compare with were made by `scripts/make_trl_fixtures.py`, which names the versions and says how.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candlewick::algorithm::{
    AdvantageEstimator, AlgorithmError, Denominators, KlEstimator, LossType, Objective, ObjectiveConfig,
    ObjectiveStats, ScaleRewards, TokenBatch, compute_advantages, compute_objective,
};
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

#[derive(Deserialize)]
struct ObjectiveFixture {
    max_completion_length: usize,
    lengths: Vec<usize>,
    truncated: Vec<bool>,
    logprobs: Vec<f64>,
    old_logprobs: Vec<f64>,
    ref_logprobs: Vec<f64>,
    advantages: Vec<f64>,
    cases: Vec<ObjectiveCase>,
}

#[derive(Debug, Deserialize)]
struct ObjectiveCase {
    loss_type: LossType,
    beta: f64,
    epsilon: f64,
    epsilon_high: f64,
    delta: Option<f64>,
    micro_batches: usize,
    mask_truncated: bool,
    off_policy: bool,
    loss: f64,
    grad: Vec<f64>,
    metrics: Option<BTreeMap<String, f64>>,
}

/// Our loss of the whole step: the sum over micro-batches of equally many rows.
fn compute_step(fixture: &ObjectiveFixture, case: &ObjectiveCase) -> Result<Objective, AlgorithmError> {
    let rows: Vec<Range<usize>> = fixture
        .lengths
        .iter()
        .scan(0, |start, length| {
            *start += length;
            Some(*start - length..*start)
        })
        .collect();
    let kept = fixture.truncated.iter().map(|truncated| !(case.mask_truncated && *truncated));
    let mask: Vec<bool> = kept.zip(&rows).flat_map(|(is, row)| std::iter::repeat_n(is, row.len())).collect();
    let config = ObjectiveConfig {
        loss_type: case.loss_type,
        epsilon: case.epsilon,
        epsilon_high: case.epsilon_high,
        delta: case.delta,
        beta: case.beta,
        kl_estimator: KlEstimator::K3,
        max_completion_length: fixture.max_completion_length,
        ..ObjectiveConfig::default()
    };
    let whole = TokenBatch {
        logprobs: &fixture.logprobs,
        old_logprobs: case.off_policy.then_some(fixture.old_logprobs.as_slice()),
        ref_logprobs: (case.beta > 0.0).then_some(fixture.ref_logprobs.as_slice()),
        entropies: None,
        rows: &rows,
        advantages: &fixture.advantages,
        token_advantages: None,
        completion_mask: &mask,
        policy_mask: None,
    };
    let denominators =
        Denominators { rows: rows.len(), active_tokens: whole.active_tokens(), micro_batches: case.micro_batches };
    let mut step = Objective {
        loss: 0.0,
        grad: vec![0.0; whole.logprobs.len()],
        entropy_grad: None,
        stats: ObjectiveStats::default(),
    };
    let size = rows.len() / case.micro_batches;
    for first in (0..rows.len()).step_by(size) {
        let part = first..first + size;
        let micro_batch = TokenBatch { rows: &rows[part.clone()], advantages: &fixture.advantages[part], ..whole };
        let share = compute_objective(&micro_batch, &config, &denominators)?;
        step.loss += share.loss;
        step.grad.iter_mut().zip(&share.grad).for_each(|(sum, slope)| *sum += slope);
        step.stats.merge(&share.stats);
    }
    Ok(step)
}

#[test]
fn loss_gradient_and_metrics_equal_trl() {
    let fixture: ObjectiveFixture = load("objective.json");
    assert_eq!(fixture.cases.len(), 4 * 3 * 4 * 5);
    let mut clipped = 0;
    for case in &fixture.cases {
        let step = compute_step(&fixture, case).unwrap();
        let what = format!("{case:?}");
        assert_close(&what, &[step.loss], &[case.loss], DOUBLE);
        assert_close(&what, &step.grad, &case.grad, DOUBLE);
        let Some(metrics) = &case.metrics else { continue };
        let tokens = step.stats.active_tokens as f64;
        let ours = [
            ("clip_ratio/low_mean", step.stats.low_clipped as f64 / tokens),
            ("clip_ratio/high_mean", step.stats.high_clipped as f64 / tokens),
            ("clip_ratio/region_mean", step.stats.region_clipped() as f64 / tokens),
            ("clip_ratio/low_min", step.stats.low_min.unwrap()),
            ("clip_ratio/high_max", step.stats.high_max.unwrap()),
        ];
        for (name, value) in ours {
            // TRL keeps these as f32.
            assert_close(&format!("{name} {what}"), &[value], &[metrics[name]], SINGLE);
        }
        assert_eq!(metrics.contains_key("kl"), case.beta > 0.0);
        if let Some(kl) = metrics.get("kl") {
            assert_close(&what, &[step.stats.kl_sum / tokens], &[*kl], DOUBLE);
        }
        clipped += step.stats.region_clipped();
    }
    assert!(clipped > 100, "the fixture hardly clips");
}

#[derive(Deserialize)]
struct AdvantageFixture {
    cases: Vec<AdvantageCase>,
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
        let sizes = fixture.start.iter().enumerate().map(|(index, theta)| (theta.len(), index == 0));
        let mut optimizer = AdamW::new(config, sizes);
        let mut theta = fixture.start.clone();
        for (grads, (lr_expected, norm_expected)) in fixture.grads.iter().zip(case.lrs.iter().zip(&case.norms)) {
            let lr = case.lr * schedule.factor(optimizer.step);
            let norm = compute_grad_norm(grads.iter().map(Vec::as_slice));
            assert_close(&what, &[lr, norm], &[*lr_expected, *norm_expected], SINGLE);
            let step = optimizer.begin_step(lr, clip_factor(norm, Some(case.max_grad_norm)));
            for (index, (theta, grad)) in theta.iter_mut().zip(grads).enumerate() {
                optimizer.update(index, theta, grad, &step);
            }
            if let Some(expected) = case.theta.get(&optimizer.step) {
                for (theta, expected) in theta.iter().zip(expected) {
                    assert_close(&format!("{what}, step {}", optimizer.step), &widen(theta), expected, SINGLE);
                }
            }
        }
        for (got, expected) in optimizer.m.iter().zip(&case.m).chain(optimizer.v.iter().zip(&case.v)) {
            assert_close(&format!("{what}, moments"), &widen(got), expected, SINGLE);
        }
    }
}
