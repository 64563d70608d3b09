//! Tests of the mean gradient of the policy objective over samples, against its analytic value.

use super::*;
use crate::algorithm::{AdvantageEstimator, ScaleRewards, compute_advantages, subtract_kl_penalty};

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

    /// The mean gradient of the loss of a batch of the three tokens, each row's share weighed by its probability under
    /// the policy that sampled it: this one, or `old`.
    fn objective_gradient(&self, config: &ObjectiveConfig, advantages: &[f64], old: Option<[f64; 3]>) -> [f64; 3] {
        let (logprobs, ref_logprobs) = (self.policy.map(f64::ln), self.reference.map(f64::ln));
        let old_logprobs = old.map(|old| old.map(f64::ln));
        let batch = TokenBatch {
            logprobs: &logprobs,
            old_logprobs: old_logprobs.as_ref().map(<[f64; 3]>::as_slice),
            ref_logprobs: Some(&ref_logprobs),
            entropies: None,
            rows: &[0..1, 1..2, 2..3],
            advantages,
            token_advantages: None,
            completion_mask: &[true; 3],
            policy_mask: None,
        };
        let step = Denominators { rows: 3, active_tokens: 3, micro_batches: 1 };
        let objective = compute_objective(&batch, config, &step).unwrap();
        // Each row carries the weight 1 / 3; the expectation wants the row's probability instead.
        let sampler = old.unwrap_or(self.policy);
        let weighed = objective.grad.iter().zip(sampler.iter().zip(&self.policy));
        let slopes: Vec<f64> = weighed.map(|(slope, (sampled, policy))| slope * 3.0 * sampled / policy).collect();
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
    let gradient = |kl_estimator, use_bias_correction_kl, advantages: &[f64], old| {
        let config = ObjectiveConfig { beta, kl_estimator, use_bias_correction_kl, ..ObjectiveConfig::default() };
        policies.objective_gradient(&config, advantages, old)
    };
    let mut rewards = [Some(0.0); 3];
    let (old, reference) = (policies.policy.map(f64::ln), policies.reference.map(f64::ln));
    subtract_kl_penalty(&mut rewards, &old, &reference, &[0..1, 1..2, 2..3], &[true; 3], beta).unwrap();
    let estimator = AdvantageEstimator::Group(ScaleRewards::None);
    let penalised = compute_advantages(&rewards, 3, estimator, None).unwrap().advantages;
    let (reverse, forward) = (policies.reverse_kl_gradient(), policies.forward_kl_gradient());
    let sampled_elsewhere = Some([0.3, 0.3, 0.4]);
    let cases = [
        ("k1", gradient(KlEstimator::K1, false, &penalised, None), reverse),
        ("k2", gradient(KlEstimator::K2, false, &[0.0; 3], None), reverse),
        ("k3", gradient(KlEstimator::K3, false, &[0.0; 3], None), forward),
        ("corrected k3", gradient(KlEstimator::K3, true, &[0.0; 3], None), reverse),
        ("corrected k3, off-policy", gradient(KlEstimator::K3, true, &[0.0; 3], sampled_elsewhere), reverse),
        (
            "sequence_squared",
            gradient(KlEstimator::SequenceSquared, false, &[0.0; 3], None),
            reverse.map(|slope| 2.0 * slope),
        ),
    ];
    for (name, got, expected) in cases {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - beta * expected).abs() < 1e-12, "{name}: {got} {}", beta * expected);
        }
        assert!(got.iter().any(|slope| slope.abs() > 0.01), "{name} is zero");
    }
}

/// Without a ratio the mean gradient over the policy's own samples is that of the expected advantage.
#[test]
fn mean_gradient_of_the_plain_policy_gradient_is_the_analytic_one() {
    let policies = ThreeTokens { policy: [0.5, 0.3, 0.2], reference: [0.2, 0.3, 0.5] };
    let advantages = [1.0, -0.5, 2.0];
    let mean: f64 = (0..3).map(|token| policies.policy[token] * advantages[token]).sum();
    let level = ImportanceSamplingLevel::None;
    let config = ObjectiveConfig { importance_sampling_level: level, beta: 0.0, ..ObjectiveConfig::default() };
    let got = policies.objective_gradient(&config, &advantages, None);
    for (token, slope) in got.iter().enumerate() {
        assert!((slope + policies.policy[token] * (advantages[token] - mean)).abs() < 1e-12, "{got:?}");
    }
}
