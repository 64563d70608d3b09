//! How the samples of an evaluation spread: rewards over bins, extracted answers by count, the characters of the text.

use std::collections::{BTreeMap, BTreeSet};

use super::EvalSample;

/// Up to this many different rewards, each has a bin of its own.
const MAX_VALUES: usize = 10;
/// Bins of equal width, where there are more different rewards.
const NUM_RANGES: usize = 10;

/// Rewards from `low` to `high`: without `high` itself in all bins of a width but the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// The smallest reward of the bin.
    pub low: f64,
    /// The upper end; equal to `low` where the bin is one value.
    pub high: f64,
}

/// The bins that hold the rewards of all `samples`: one a value for up to ten different values, else ten of equal
/// width from the smallest to the largest. Samples without a reward, or with one that is not finite, have no bin.
pub fn reward_bins<'a>(samples: impl IntoIterator<Item = &'a EvalSample>) -> Vec<Bin> {
    bins_of(samples.into_iter().filter_map(|sample| sample.reward))
}

/// The bins of [`reward_bins`] for any values; those that are not finite have no bin.
pub fn bins_of(values: impl IntoIterator<Item = f64>) -> Vec<Bin> {
    // -0.0 and 0.0 are one value.
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).map(|value| value + 0.0).collect();
    values.sort_by(f64::total_cmp);
    values.dedup_by(|a, b| a.total_cmp(b).is_eq());
    let (Some(&low), Some(&high)) = (values.first(), values.last()) else { return Vec::new() };
    if values.len() <= MAX_VALUES {
        return values.into_iter().map(|value| Bin { low: value, high: value }).collect();
    }
    // Weighted ends: the difference of two finite numbers may overflow.
    let edge = |i: usize| {
        let share = i as f64 / NUM_RANGES as f64;
        low * (1.0 - share) + high * share
    };
    (0..NUM_RANGES).map(|i| Bin { low: edge(i), high: if i + 1 == NUM_RANGES { high } else { edge(i + 1) } }).collect()
}

/// The samples in each of the bins of [`reward_bins`], and last those in none.
#[must_use]
pub fn count_rewards(samples: &[EvalSample], bins: &[Bin]) -> (Vec<usize>, usize) {
    let mut counts = vec![0; bins.len()];
    let mut unscored = 0;
    for sample in samples {
        // The last bin that starts at or below the reward.
        let at = finite_reward(sample).map_or(0, |reward| bins.partition_point(|bin| bin.low <= reward));
        match at.checked_sub(1) {
            Some(at) => counts[at] += 1,
            None => unscored += 1,
        }
    }
    (counts, unscored)
}

fn finite_reward(sample: &EvalSample) -> Option<f64> {
    // -0.0 and 0.0 are one value.
    sample.reward.filter(|reward| reward.is_finite()).map(|reward| reward + 0.0)
}

/// What the grader read in the completions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerCounts {
    /// The most common answers with their counts, the most common first; equals by their text.
    pub common: Vec<(String, usize)>,
    /// Different answers.
    pub num_distinct: usize,
    /// Completions in which nothing was found.
    pub num_none: usize,
}

/// Counts the extracted answers; `most` of them are listed.
#[must_use]
pub fn count_answers(samples: &[EvalSample], most: usize) -> AnswerCounts {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in samples.iter().filter_map(|sample| sample.extracted.as_deref()) {
        *counts.entry(answer).or_default() += 1;
    }
    let num_distinct = counts.len();
    let num_none = samples.iter().filter(|sample| sample.extracted.is_none()).count();
    let mut common: Vec<(String, usize)> =
        counts.into_iter().map(|(answer, count)| (answer.to_owned(), count)).collect();
    // The sort is stable, so equals stay in the order of their text.
    common.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    common.truncate(most);
    AnswerCounts { common, num_distinct, num_none }
}

/// The characters of all completions together.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct TextStatistics {
    /// Characters (Unicode scalar values).
    pub num_characters: usize,
    /// Letters among the characters; none for no characters.
    pub letter_share: Option<f64>,
    /// Uppercase letters among the letters; none for no letters.
    pub uppercase_share: Option<f64>,
    /// A given character among the characters; none where none was given or there are no characters.
    pub given_share: Option<f64>,
    /// Entropy of the distribution of the characters, in bits: 0 where all are the same, `log2(n)` for `n` equally
    /// frequent ones; none for no characters.
    pub entropy_bits: Option<f64>,
    /// Different characters.
    pub num_distinct: usize,
}

/// The statistics of texts; `given` is the character of `given_share`.
pub fn text_statistics<'a>(texts: impl IntoIterator<Item = &'a str>, given: Option<char>) -> TextStatistics {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for c in texts.into_iter().flat_map(str::chars) {
        *counts.entry(c).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let sum_of = |is_counted: &dyn Fn(char) -> bool| -> usize {
        counts.iter().filter(|(c, _)| is_counted(**c)).map(|(_, count)| count).sum()
    };
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    let letters = sum_of(&char::is_alphabetic);
    let entropy = || {
        let shares = counts.values().map(|count| *count as f64 / total as f64);
        shares.map(|p| -p * p.log2()).sum::<f64>().max(0.0)
    };
    TextStatistics {
        num_characters: total,
        letter_share: share(letters, total),
        uppercase_share: share(sum_of(&|c| c.is_alphabetic() && c.is_uppercase()), letters),
        given_share: given.and_then(|given| share(sum_of(&|c| c == given), total)),
        entropy_bits: (total > 0).then(entropy),
        num_distinct: counts.len(),
    }
}

/// A name for each model: the last part of its path where these differ, else the whole; one that is there twice gets a
/// number.
#[must_use]
pub fn labels(models: &[String]) -> Vec<String> {
    let last = |model: &String| {
        let parts: Vec<&str> = model.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        parts.last().map_or_else(|| model.clone(), |part| (*part).to_owned())
    };
    let short: Vec<String> = models.iter().map(last).collect();
    let models_differ: BTreeSet<&String> = models.iter().collect();
    let is_clear = short.iter().collect::<BTreeSet<_>>().len() == models_differ.len();
    let names = if is_clear { short } else { models.to_vec() };
    let numbered = names.iter().enumerate().map(|(i, name)| {
        let before = names[..i].iter().filter(|other| *other == name).count();
        if before == 0 { name.clone() } else { format!("{name} ({})", before + 1) }
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    fn with_rewards(rewards: &[Option<f64>]) -> Vec<EvalSample> {
        rewards.iter().map(|reward| EvalSample { reward: *reward, ..sample(0, true) }).collect()
    }

    #[test]
    fn few_rewards_have_a_bin_each() {
        let samples = with_rewards(&[Some(1.0), Some(-0.5), None, Some(0.0), Some(-0.0), Some(1.0), Some(f64::NAN)]);
        let bins = reward_bins(&samples);
        assert_eq!(bins.iter().map(|bin| bin.low).collect::<Vec<_>>(), [-0.5, 0.0, 1.0]);
        assert_eq!(count_rewards(&samples, &bins), (vec![1, 2, 2], 2));
    }

    #[test]
    fn many_rewards_fall_into_ten_ranges() {
        let values: Vec<_> = (0..=20).map(|i| Some(f64::from(i) * 0.5)).collect();
        let samples = with_rewards(&values);
        let bins = reward_bins(&samples);
        assert_eq!((bins.len(), bins[0].low, bins[9].high), (10, 0.0, 10.0));
        // 0, 0.5 | 1, 1.5 | ... | 9, 9.5 and the largest, 10.
        assert_eq!(count_rewards(&samples, &bins), (vec![2, 2, 2, 2, 2, 2, 2, 2, 2, 3], 0));
        let wide = with_rewards(&(0..11).map(|i| Some((f64::from(i) - 5.0) * 0.3e308)).collect::<Vec<_>>());
        assert!(reward_bins(&wide).iter().all(|bin| bin.low.is_finite() && bin.low < bin.high));
        assert_eq!(count_rewards(&wide, &reward_bins(&wide)).0.iter().sum::<usize>(), 11);
    }

    /// The bins of several models hold the rewards of all of them.
    #[test]
    fn bins_are_shared() {
        let (a, b) = (with_rewards(&[Some(0.0)]), with_rewards(&[Some(1.0), Some(1.0)]));
        let bins = reward_bins(a.iter().chain(&b));
        assert_eq!(count_rewards(&a, &bins), (vec![1, 0], 0));
        assert_eq!(count_rewards(&b, &bins), (vec![0, 2], 0));
        assert_eq!(count_rewards(&with_rewards(&[None]), &reward_bins(&[])), (vec![], 1));
    }

    #[test]
    fn answers_are_counted_most_common_first() {
        let answered = |text: Option<&str>| EvalSample { extracted: text.map(str::to_owned), ..sample(0, true) };
        let samples = [Some("7"), None, Some("12"), Some("7"), Some("3"), Some("12"), Some("9")].map(answered);
        let counts = count_answers(&samples, 3);
        let common: Vec<_> = counts.common.iter().map(|(text, count)| (text.as_str(), *count)).collect();
        assert_eq!(common, [("12", 2), ("7", 2), ("3", 1)]);
        assert_eq!((counts.num_distinct, counts.num_none), (4, 1));
    }

    #[test]
    fn the_characters_of_a_text() {
        let found = text_statistics(["AB c", "é."], Some('c'));
        assert_eq!((found.num_characters, found.num_distinct), (6, 6));
        let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-12, "{a:?} {b}");
        close(found.letter_share, 4.0 / 6.0);
        close(found.uppercase_share, 0.5);
        close(found.given_share, 1.0 / 6.0);
        close(found.entropy_bits, 6f64.log2());
        // Two characters, 3 to 1: 0.75 log2(4/3) + 0.25 log2(4) bits.
        close(text_statistics(["eee!"], None).entropy_bits, 0.811_278_124_459_132_8);
        let same = text_statistics(["eeeee"], Some('E'));
        close(same.entropy_bits, 0.0);
        close(same.given_share, 0.0);
    }

    /// Nothing is a share of nothing: such figures are missing, not NaN.
    #[test]
    fn empty_texts_have_no_shares() {
        let none = text_statistics(["", ""], Some('e'));
        assert_eq!((none.letter_share, none.given_share, none.entropy_bits), (None, None, None));
        assert_eq!(text_statistics(["1 + 2"], None).uppercase_share, None);
    }

    #[test]
    fn models_are_named_by_their_folders() {
        let of = |models: &[&str]| labels(&models.iter().map(|&m| m.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["data/starter", "output/quickstart/"]), ["starter", "quickstart"]);
        assert_eq!(of(&["a/run", "b/run"]), ["a/run", "b/run"]);
        assert_eq!(of(&["a/run", "a/run"]), ["run", "run (2)"]);
        assert_eq!(of(&["."]), ["."]);
    }
}
