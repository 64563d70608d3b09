//! Accuracy, mean rewards, pass@k, with their standard errors.

use super::EvalSample;
use crate::text::FinishReason;

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Standard error over prompts (ddof 1, as lm-evaluation-harness); with one sample a prompt and 0/1 values it is
    /// `sqrt(p (1 - p) / (n - 1))`. None for a single prompt.
    pub stderr: Option<f64>,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct EvalFigures {
    /// Prompts with at least one sample.
    pub num_prompts: usize,
    /// Completions of all prompts.
    pub num_samples: usize,
    /// Share of right completions.
    pub accuracy: Estimate,
    /// Mean of the weighted reward over the samples that have one, and its standard error over prompts.
    pub mean_reward: Option<Estimate>,
    /// Mean of each reward over the samples that have a score, by name.
    pub rewards: Vec<(String, Option<f64>)>,
    /// pass@k for k = 1, 2, 4, ... up to the fewest samples of a prompt.
    pub pass_at_k: Vec<(usize, Estimate)>,
    /// pass^k for the same k: the chance that all of k samples are right.
    pub pass_hat_k: Vec<(usize, Estimate)>,
    /// Mean length of a completion, its EOS included.
    pub mean_completion_tokens: f64,
    /// Share of completions that the length limit cut.
    pub clipped_ratio: f64,
}

/// The unbiased estimate of pass@k, `1 - C(n - c, k) / C(n, k)`, from `n` samples of which `c` are right
/// (arXiv:2107.03374 eq. 1), as a product that never overflows. `k` is cut to `n`.
#[must_use]
pub fn pass_at_k(n: usize, c: usize, k: usize) -> f64 {
    1.0 - none_of_k(n, c, k)
}

/// The unbiased estimate of pass^k, `C(c, k) / C(n, k)`: the chance that all of `k` samples are right.
#[must_use]
pub fn pass_hat_k(n: usize, c: usize, k: usize) -> f64 {
    none_of_k(n, n.saturating_sub(c), k)
}

/// The chance that `k` of `n` samples, drawn without replacement, hit none of `c` marked ones.
fn none_of_k(n: usize, c: usize, k: usize) -> f64 {
    let (c, k) = (c.min(n), k.min(n));
    if n - c < k {
        return 0.0;
    }
    (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product()
}

/// The figures of an evaluation. Samples of one prompt must stand together; `reward_names` are in the order of
/// `EvalSample::rewards`. None where there is no sample.
#[must_use]
pub fn compute_figures(samples: &[EvalSample], reward_names: &[String]) -> Option<EvalFigures> {
    let groups: Vec<&[EvalSample]> = samples.chunk_by(|a, b| a.row_index == b.row_index).collect();
    let fewest = groups.iter().map(|group| group.len()).min()?;
    let counts: Vec<(usize, usize)> =
        groups.iter().map(|group| (group.len(), group.iter().filter(|sample| sample.is_correct).count())).collect();
    let over_prompts =
        |value: &dyn Fn(usize, usize) -> f64| estimate(&counts.iter().map(|&(n, c)| value(n, c)).collect::<Vec<f64>>());
    let ks: Vec<usize> =
        std::iter::successors(Some(1usize), |k| k.checked_mul(2)).take_while(|&k| k <= fewest).collect();
    let share = |is_counted: &dyn Fn(&EvalSample) -> bool| {
        samples.iter().filter(|sample| is_counted(sample)).count() as f64 / samples.len() as f64
    };

    let group_rewards: Vec<f64> =
        groups.iter().filter_map(|group| mean(group.iter().filter_map(|sample| sample.reward))).collect();
    let mean_reward = mean(samples.iter().filter_map(|sample| sample.reward))
        .map(|value| Estimate { value, stderr: estimate(&group_rewards).stderr });
    let rewards = reward_names
        .iter()
        .enumerate()
        .map(|(i, name)| (name.clone(), mean(samples.iter().filter_map(|s| s.rewards.get(i).copied().flatten()))))
        .collect();
    Some(EvalFigures {
        num_prompts: groups.len(),
        num_samples: samples.len(),
        accuracy: Estimate {
            value: share(&|sample| sample.is_correct),
            stderr: over_prompts(&|n, c| c as f64 / n as f64).stderr,
        },
        mean_reward,
        rewards,
        pass_at_k: ks.iter().map(|&k| (k, over_prompts(&|n, c| pass_at_k(n, c, k)))).collect(),
        pass_hat_k: ks.iter().map(|&k| (k, over_prompts(&|n, c| pass_hat_k(n, c, k)))).collect(),
        mean_completion_tokens: mean(samples.iter().map(|sample| sample.num_tokens as f64)).unwrap_or(0.0),
        clipped_ratio: share(&|sample| sample.finish_reason == FinishReason::Length),
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Mean and standard error of independent values (at least one).
fn estimate(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Estimate { value: mean, stderr: (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    fn choose(n: usize, k: usize) -> f64 {
        if k > n { 0.0 } else { (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product() }
    }

    #[test]
    fn pass_at_k_is_the_ratio_of_binomials() {
        for n in 1..=12 {
            for c in 0..=n {
                for k in 1..=n {
                    let at = 1.0 - choose(n - c, k) / choose(n, k);
                    let hat = choose(c, k) / choose(n, k);
                    assert!((pass_at_k(n, c, k) - at).abs() < 1e-12, "n {n} c {c} k {k}");
                    assert!((pass_hat_k(n, c, k) - hat).abs() < 1e-12, "n {n} c {c} k {k}");
                }
            }
        }
        assert!(pass_at_k(100_000, 1, 50_000) > 0.499);
    }

    #[test]
    fn figures_of_two_prompts() {
        let samples: Vec<_> = [(0, true), (0, false), (0, false), (0, false), (3, true), (3, true)]
            .map(|(row, ok)| sample(row, ok))
            .into();
        let figures = compute_figures(&samples, &["last_integer".to_string(), "absent".to_string()]).unwrap();
        assert_eq!((figures.num_prompts, figures.num_samples), (2, 6));
        assert!((figures.accuracy.value - 0.5).abs() < 1e-12);
        assert!((figures.mean_reward.unwrap().value - 0.5).abs() < 1e-12);
        assert_eq!(figures.rewards, [("last_integer".to_string(), Some(0.5)), ("absent".to_string(), None)]);
        // Per prompt: 1/4 and 1 at k = 1, 1/2 and 1 at k = 2; k = 4 has too few samples.
        let pass: Vec<_> = figures.pass_at_k.iter().map(|(k, estimate)| (*k, estimate.value)).collect();
        assert_eq!(pass, [(1, 0.625), (2, 0.75)]);
        let hat: Vec<_> = figures.pass_hat_k.iter().map(|(k, estimate)| (*k, estimate.value)).collect();
        assert_eq!(hat, [(1, 0.625), (2, 0.5)]);
        assert!((figures.clipped_ratio - 0.5).abs() < 1e-12);
        assert!(compute_figures(&[], &[]).is_none());
    }

    #[test]
    fn the_standard_error_is_binomial_for_single_samples() {
        let samples: Vec<_> = (0..10).map(|row| sample(row, row < 3)).collect();
        let figures = compute_figures(&samples, &[]).unwrap();
        assert!((figures.accuracy.stderr.unwrap() - (0.3f64 * 0.7 / 9.0).sqrt()).abs() < 1e-12);
        assert_eq!(compute_figures(&samples[..1], &[]).unwrap().accuracy.stderr, None);
    }
}
