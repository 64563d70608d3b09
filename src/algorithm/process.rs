//! Rewards of single tokens -> one advantage a token: process supervision.
//!
//! A token is credited with what is scored at it and after it (GRPO, arXiv:2402.03300, section 4.1.3). Where such
//! rewards come from is none of this module's business.

use std::ops::Range;

use super::advantage::{ScaleRewards, compute_stats};
use super::{AlgorithmError, check_ranges};

/// Computes `A_t = sum over s >= t of the normalised values` within each row.
///
/// A value is normalised by the mean and the standard deviation of the values of its group, as an outcome reward is
/// ([`super::AdvantageEstimator::Group`]), or by those that `scale` asks for. A token without a value adds nothing.
/// The result is what [`super::TokenBatch::token_advantages`] adds to the row's advantage.
///
/// # Shapes
/// `values [N]`, `rows [P * num_generations]` (token range of each row, group-major) -> `[N]`, 0 outside the rows.
///
/// # Errors
/// When the rows do not make whole groups or lie outside the values.
///
/// # Examples
/// ```
/// use candlewick::algorithm::{ScaleRewards, compute_token_advantages};
///
/// let values = [None, Some(1.0), Some(0.5), None, Some(0.0)];
/// let advantages = compute_token_advantages(&values, &[0..3, 3..5], 2, ScaleRewards::None)?;
/// assert_eq!(advantages, [0.5, 0.5, 0.0, -0.5, -0.5]);
/// # Ok::<(), candlewick::algorithm::AlgorithmError>(())
/// ```
pub fn compute_token_advantages(
    values: &[Option<f64>],
    rows: &[Range<usize>],
    num_generations: usize,
    scale: ScaleRewards,
) -> Result<Vec<f64>, AlgorithmError> {
    if num_generations == 0 || !rows.len().is_multiple_of(num_generations) {
        return Err(AlgorithmError::Groups { rewards: rows.len(), num_generations });
    }
    check_ranges(rows, values.len())?;
    let of = |rows: &[Range<usize>]| compute_stats(rows.iter().cloned().flatten().map(|t| values[t]));
    let batch = of(rows);
    let mut advantages = vec![0.0; values.len()];
    for group in rows.chunks(num_generations) {
        let stats = of(group);
        for range in group {
            let mut sum = 0.0;
            for t in range.clone().rev() {
                sum += values[t].map_or(0.0, |value| scale.apply(value - stats.mean, stats.std, batch.std));
                advantages[t] = sum;
            }
        }
    }
    Ok(advantages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_credited_with_what_follows_it() {
        let values = [Some(1.0), None, Some(0.0), Some(3.0), None, Some(2.0), Some(2.0)];
        let rows = [0..3, 3..5, 5..6, 6..7];
        let got = compute_token_advantages(&values, &rows, 2, ScaleRewards::Group).unwrap();
        // The first group has 1, 0, 3: mean 4 / 3, squared deviations 42 / 9.
        let std = (42.0f64 / 9.0 / 2.0).sqrt() + 1e-4;
        let expected = [-5.0 / 3.0 / std, -4.0 / 3.0 / std, -4.0 / 3.0 / std, 5.0 / 3.0 / std, 0.0, 0.0, 0.0];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn no_values_give_no_advantage() {
        let got = compute_token_advantages(&[None; 4], &[0..2, 2..4], 2, ScaleRewards::Batch).unwrap();
        assert_eq!(got, [0.0; 4]);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let rows = [0..1, 1..2, 2..4];
        let compute =
            |num_generations| compute_token_advantages(&[None; 3], &rows, num_generations, ScaleRewards::None);
        assert_eq!(compute(2), Err(AlgorithmError::Groups { rewards: 3, num_generations: 2 }));
        assert_eq!(compute(0), Err(AlgorithmError::Groups { rewards: 3, num_generations: 0 }));
        assert_eq!(compute(3), Err(AlgorithmError::Range { row: 2, start: 2, end: 4, tokens: 3 }));
    }
}
