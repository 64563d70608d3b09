//! The policy term of one token: what is maximised, and its slopes.
//!
//! Knows one token's log-prob, log-ratio and advantage; how tokens are summed up belongs to `aggregation`, and whether
//! the log-ratio is that of the token or of its whole row to `ratio`.

use super::aggregation::LossType;
use super::objective::ObjectiveConfig;
use super::ratio::ImportanceSamplingLevel;

/// The bounds of the clipped ratio.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClipBounds {
    /// `1 - epsilon`.
    pub low: f64,
    /// `1 + epsilon_high`.
    pub high: f64,
    /// Upper cap of the unclipped branch; infinite unless `delta` is set.
    pub delta: f64,
}

/// The form of the policy term. Below, `w = exp(log_ratio)`, `l` the log-prob, `A` the advantage.
#[derive(Debug, Clone, Copy)]
pub(super) enum Surrogate {
    /// `-min(min(w, delta) A, clip(w, low, high) A)`.
    Clipped(ClipBounds),
    /// `-min(w, cap) A l`, the ratio a constant.
    Capped { cap: f64 },
    /// `-A (4 / tau) sigmoid(tau (w - 1))`.
    Soft { temperature_pos: f64, temperature_neg: f64 },
    /// `-A l`.
    Vanilla,
}

/// The policy term of one token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct SurrogateTerm {
    /// The term of the loss.
    pub value: f64,
    /// Its derivative with respect to the log-ratio.
    pub ratio_slope: f64,
    /// Its derivative with respect to the token's log-prob where the ratio is held fixed.
    pub logprob_slope: f64,
    /// Clipped below: advantage < 0 and ratio < `1 - epsilon`.
    pub is_low_clipped: bool,
    /// Clipped above: advantage > 0 and ratio above the upper bound.
    pub is_high_clipped: bool,
}

impl Surrogate {
    /// The form that the settings ask for.
    pub(super) fn new(config: &ObjectiveConfig) -> Self {
        match (config.importance_sampling_level, config.loss_type) {
            (ImportanceSamplingLevel::None, _) => Self::Vanilla,
            (_, LossType::Cispo) => Self::Capped { cap: config.epsilon_high },
            (_, LossType::Sapo) => Self::Soft {
                temperature_pos: config.sapo_temperature_pos,
                temperature_neg: config.sapo_temperature_neg,
            },
            (_, LossType::Grpo | LossType::Bnpo | LossType::DrGrpo | LossType::Dapo | LossType::Reinforce) => {
                Self::Clipped(ClipBounds {
                    low: 1.0 - config.epsilon,
                    high: 1.0 + config.epsilon_high,
                    delta: config.delta.unwrap_or(f64::INFINITY),
                })
            }
        }
    }

    /// Whether a ratio can be clipped at all, so that shares of clipped ratios say something.
    pub(super) fn clips(&self) -> bool {
        matches!(self, Self::Clipped(_) | Self::Capped { .. })
    }

    /// The term of one token.
    pub(super) fn compute(&self, log_ratio: f64, logprob: f64, advantage: f64) -> SurrogateTerm {
        // A token without an advantage has no policy term, and an overflowing ratio must not make it NaN.
        if advantage == 0.0 {
            return SurrogateTerm::default();
        }
        match *self {
            Self::Clipped(ref bounds) => compute_clipped(log_ratio, advantage, bounds),
            Self::Capped { cap } => compute_capped(log_ratio, logprob, advantage, cap),
            Self::Soft { temperature_pos, temperature_neg } => {
                compute_soft(log_ratio, advantage, if advantage > 0.0 { temperature_pos } else { temperature_neg })
            }
            Self::Vanilla => {
                SurrogateTerm { value: -advantage * logprob, logprob_slope: -advantage, ..SurrogateTerm::default() }
            }
        }
    }
}

/// The clipped surrogate `-min(min(w, delta) A, clip(w, low, high) A)` with `w = exp(log_ratio)`.
///
/// PPO's objective (arXiv:1707.06347 eq. 7) with an upper bound of its own (DAPO, arXiv:2503.14476 eq. 8) and the cap
/// `delta` on the ratio of rows with a negative advantage (arXiv:2505.07291, section 3.4). Where both branches are
/// equal the slope is the mean of theirs, as torch's `minimum` splits it.
fn compute_clipped(log_ratio: f64, advantage: f64, bounds: &ClipBounds) -> SurrogateTerm {
    let ratio = log_ratio.exp();
    let capped = ratio.min(bounds.delta);
    // max/min rather than clamp: clamp panics when an unchecked setting puts the lower bound above the upper one.
    let clipped = ratio.max(bounds.low).min(bounds.high);
    let capped_slope = if ratio <= bounds.delta { ratio * advantage } else { 0.0 };
    let clipped_slope = if ratio >= bounds.low && ratio <= bounds.high { ratio * advantage } else { 0.0 };
    let (plain, bounded) = (capped * advantage, clipped * advantage);
    let slope = if plain < bounded {
        capped_slope
    } else if plain > bounded {
        clipped_slope
    } else {
        f64::midpoint(capped_slope, clipped_slope)
    };
    // f64::min would hide a NaN ratio (it returns the other operand); a NaN must reach the non-finite check.
    let value = if ratio.is_nan() { f64::NAN } else { -plain.min(bounded) };
    SurrogateTerm {
        value,
        ratio_slope: if ratio.is_nan() { f64::NAN } else { -slope },
        logprob_slope: 0.0,
        is_low_clipped: capped < bounds.low && advantage < 0.0,
        is_high_clipped: capped > bounds.high && advantage > 0.0,
    }
}

/// `-min(w, cap) A l` with a ratio that is not differentiated (CISPO, arXiv:2506.13585 eq. 4): no token is dropped from
/// the gradient, however far its ratio went.
fn compute_capped(log_ratio: f64, logprob: f64, advantage: f64, cap: f64) -> SurrogateTerm {
    let ratio = log_ratio.exp();
    // The comparison keeps a NaN where f64::min would hide it.
    let weight = if ratio > cap { cap } else { ratio };
    SurrogateTerm {
        value: -weight * advantage * logprob,
        ratio_slope: 0.0,
        logprob_slope: -weight * advantage,
        is_low_clipped: false,
        is_high_clipped: ratio > cap && advantage > 0.0,
    }
}

/// `-A (4 / tau) sigmoid(tau (w - 1))` (SAPO, arXiv:2511.20347): at `w = 1` the slope is that of the plain ratio, and
/// it falls smoothly to 0 on both sides.
fn compute_soft(log_ratio: f64, advantage: f64, temperature: f64) -> SurrogateTerm {
    let ratio = log_ratio.exp();
    let gate = 1.0 / (1.0 + (-temperature * (ratio - 1.0)).exp());
    let bend = gate * (1.0 - gate);
    // Far out the gate is flat, and 0 times an infinite ratio must not be NaN.
    let slope = if bend == 0.0 { 0.0 } else { 4.0 * bend * ratio };
    SurrogateTerm {
        value: -advantage * gate * 4.0 / temperature,
        ratio_slope: -advantage * slope,
        ..SurrogateTerm::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: ClipBounds = ClipBounds { low: 0.8, high: 1.28, delta: 2.0 };

    #[test]
    fn each_branch_has_its_value_and_slope() {
        // (ratio, advantage) -> (value, slope, low, high)
        let table = [
            (1.0, 2.0, -2.0, -2.0, false, false),
            (0.5, 2.0, -1.0, -1.0, false, false),
            (1.5, 2.0, -2.56, 0.0, false, true),
            (3.0, 2.0, -2.56, 0.0, false, true),
            (1.0, -2.0, 2.0, 2.0, false, false),
            (0.5, -2.0, 1.6, 0.0, true, false),
            (1.5, -2.0, 3.0, 3.0, false, false),
            (3.0, -2.0, 4.0, 0.0, false, false),
            (1.5, 0.0, 0.0, 0.0, false, false),
        ];
        for (ratio, advantage, value, slope, low, high) in table {
            let term = Surrogate::Clipped(BOUNDS).compute(f64::ln(ratio), -1.0, advantage);
            assert!((term.value - value).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert!((term.ratio_slope - slope).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert_eq!((term.is_low_clipped, term.is_high_clipped), (low, high), "{ratio} {advantage}");
        }
    }

    #[test]
    fn a_capped_ratio_weighs_the_log_prob_and_is_no_slope() {
        // (ratio, advantage) -> (weight, high)
        for (ratio, advantage, weight, high) in
            [(0.5, 2.0, 0.5, false), (3.0, 2.0, 3.0, false), (7.0, 2.0, 5.0, true), (7.0, -2.0, 5.0, false)]
        {
            let term = Surrogate::Capped { cap: 5.0 }.compute(f64::ln(ratio), -0.5, advantage);
            assert!((term.value - 0.5 * weight * advantage).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert!((term.logprob_slope + weight * advantage).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert_eq!((term.ratio_slope, term.is_low_clipped, term.is_high_clipped), (0.0, false, high));
        }
    }

    #[test]
    fn the_soft_gate_has_the_plain_slope_at_one_and_its_temperature_by_the_sign() {
        let soft = Surrogate::Soft { temperature_pos: 1.0, temperature_neg: 2.0 };
        for (advantage, temperature) in [(3.0, 1.0), (-3.0, 2.0)] {
            let term = soft.compute(0.0, -1.0, advantage);
            assert!(
                (term.ratio_slope + advantage).abs() < 1e-12
                    && (term.value + 2.0 * advantage / temperature).abs() < 1e-12
            );
            let far = soft.compute(f64::ln(4.0), -1.0, advantage);
            assert!(far.ratio_slope.abs() < term.ratio_slope.abs());
        }
    }

    #[test]
    fn overflow_is_capped_and_nan_is_not_hidden() {
        let clipped = Surrogate::Clipped(BOUNDS);
        let soft = Surrogate::Soft { temperature_pos: 1.0, temperature_neg: 1.05 };
        let capped = Surrogate::Capped { cap: 5.0 };
        assert_eq!(clipped.compute(1e4, -1.0, 0.0).value.to_bits(), 0.0f64.to_bits());
        assert!((clipped.compute(1e4, -1.0, -1.0).value - 2.0).abs() < 1e-12);
        assert!((soft.compute(1e4, -1.0, 1.0).value + 4.0).abs() < 1e-12);
        assert_eq!(soft.compute(1e4, -1.0, 1.0).ratio_slope.abs().to_bits(), 0.0f64.to_bits());
        assert!((capped.compute(1e4, -1.0, 1.0).value - 5.0).abs() < 1e-12);
        for surrogate in [clipped, soft] {
            let term = surrogate.compute(f64::NAN, -1.0, 1.0);
            assert!(term.value.is_nan() && term.ratio_slope.is_nan(), "{surrogate:?}");
        }
        let term = capped.compute(f64::NAN, -1.0, 1.0);
        assert!(term.value.is_nan() && term.logprob_slope.is_nan());
    }
}
