//! Which tokens count as uncertain: the entropy quantile of `top_entropy_quantile`.
//!
//! "Beyond the 80/20 rule" (arXiv:2506.01939): the policy term of a step's most uncertain tokens alone. The entropy
//! bonus is part of [`super::objective`].

/// The entropy at or above which a token belongs to the `rho` most uncertain share of the step.
///
/// The `1 - rho` quantile of the active tokens' entropies, interpolated linearly in f32, as `torch.quantile` does for
/// TRL. Tokens with an entropy at or above it keep their policy term. Infinite without tokens; NaN where an entropy is.
///
/// # Shapes
/// `entropies [T]`: nats, f32 values, of all active tokens of the step in any order; `rho` in `[0, 1]`.
///
/// # Examples
/// ```
/// use candlewick::algorithm::entropy_threshold;
///
/// assert!((entropy_threshold(&[0.0, 3.0, 1.0, 2.0], 0.5) - 1.5).abs() < 1e-12);
/// ```
#[must_use]
pub fn entropy_threshold(entropies: &[f64], rho: f64) -> f64 {
    let mut sorted: Vec<f32> = entropies.iter().map(|entropy| *entropy as f32).collect();
    if sorted.iter().any(|entropy| entropy.is_nan()) {
        return f64::NAN;
    }
    let Some(last) = sorted.len().checked_sub(1) else { return f64::INFINITY };
    sorted.sort_unstable_by(f32::total_cmp);
    // f32 also here: 0.7 * 10 is 7 there and a little less in f64, which would pick another token.
    let rank = (1.0 - rho.clamp(0.0, 1.0)) as f32 * last as f32;
    let (below, above) = (sorted[rank.floor() as usize], sorted[(rank.ceil() as usize).min(last)]);
    let weight = rank.fract();
    // torch's lerp goes from the nearer end.
    let between =
        if weight < 0.5 { below + weight * (above - below) } else { above - (above - below) * (1.0 - weight) };
    f64::from(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_the_linear_quantile() {
        let entropies = [0.5, 2.0, 1.0, 4.0, 3.0];
        // (rho, threshold): rank (1 - rho) * 4 of 0.5, 1, 2, 3, 4.
        for (rho, threshold) in [(1.0, 0.5), (0.75, 1.0), (0.5, 2.0), (0.4, 2.4), (0.125, 3.5), (0.0, 4.0)] {
            let got = entropy_threshold(&entropies, rho);
            assert!((got - threshold).abs() < 1e-6, "{rho}: {got}");
        }
    }

    #[test]
    fn a_rank_that_is_whole_on_paper_picks_that_token() {
        let entropies: Vec<f64> = (0..11).map(f64::from).collect();
        for (rho, kept) in [(0.3, 4), (0.1, 2), (0.9, 10), (0.7, 8)] {
            let threshold = entropy_threshold(&entropies, rho);
            assert_eq!(entropies.iter().filter(|entropy| **entropy >= threshold).count(), kept, "{rho}");
        }
    }

    #[test]
    fn no_tokens_keep_nothing_and_nan_is_not_hidden() {
        assert_eq!(entropy_threshold(&[], 0.2).to_bits(), f64::INFINITY.to_bits());
        assert!(entropy_threshold(&[1.0, f64::NAN], 0.2).is_nan());
    }
}
