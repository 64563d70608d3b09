//! The policy term of one token: what is maximised, and its slope.
//!
//! Knows one token's log-ratio and advantage; how tokens are summed up belongs to `aggregation`.

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

/// The policy term of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SurrogateTerm {
    /// The term of the loss.
    pub value: f64,
    /// Its derivative with respect to the token's log-prob.
    pub slope: f64,
    /// Clipped below: advantage < 0 and ratio < `1 - epsilon`.
    pub is_low_clipped: bool,
    /// Clipped above: advantage > 0 and ratio > `1 + epsilon_high`.
    pub is_high_clipped: bool,
}

/// The clipped surrogate `-min(min(w, delta) A, clip(w, low, high) A)` with `w = exp(log_ratio)`.
///
/// PPO's objective (arXiv:1707.06347 eq. 7) with an upper bound of its own (DAPO, arXiv:2503.14476 eq. 8) and the cap
/// `delta` on the ratio of rows with a negative advantage (arXiv:2505.07291, section 3.4). Where both branches are
/// equal the slope is the mean of theirs, as torch's `minimum` splits it.
pub(super) fn compute_clipped(log_ratio: f64, advantage: f64, bounds: &ClipBounds) -> SurrogateTerm {
    // A row without an advantage has no policy term, and an overflowing ratio must not make it NaN.
    if advantage == 0.0 {
        return SurrogateTerm { value: 0.0, slope: 0.0, is_low_clipped: false, is_high_clipped: false };
    }
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
        slope: if ratio.is_nan() { f64::NAN } else { -slope },
        is_low_clipped: capped < bounds.low && advantage < 0.0,
        is_high_clipped: capped > bounds.high && advantage > 0.0,
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
            let term = compute_clipped(f64::ln(ratio), advantage, &BOUNDS);
            assert!((term.value - value).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert!((term.slope - slope).abs() < 1e-12, "{ratio} {advantage}: {term:?}");
            assert_eq!((term.is_low_clipped, term.is_high_clipped), (low, high), "{ratio} {advantage}");
        }
    }

    #[test]
    fn overflow_is_capped_and_nan_is_not_hidden() {
        assert_eq!(compute_clipped(1e4, 0.0, &BOUNDS).value.to_bits(), 0.0f64.to_bits());
        assert!((compute_clipped(1e4, -1.0, &BOUNDS).value - 2.0).abs() < 1e-12);
        assert!(compute_clipped(f64::NAN, 1.0, &BOUNDS).value.is_nan());
        assert!(compute_clipped(f64::NAN, 1.0, &BOUNDS).slope.is_nan());
    }
}
