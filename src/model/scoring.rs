//! Whole texts through a reward model: packed, each read at its last token.
//!
//! A text's score does not depend on what it is packed with, to the bit on the CPU: texts that begin alike share the
//! tokens of that beginning, and a shared beginning gives the hidden states of separate ones.

use super::decoder::{Decoder, PackedTokens};
use crate::ops::score::scores;
use candle_core::Result;
use rayon::prelude::*;

/// Texts to run together and where each of them is read.
#[derive(Debug, Clone, Default)]
pub struct ScoreBatch {
    /// What goes through the model, `[N]`.
    pub tokens: PackedTokens,
    /// The row of each text's last token, `[B]`.
    pub ends: Vec<u32>,
}

impl ScoreBatch {
    /// Adds the texts of a group, none of them empty; what they begin with together is run once.
    fn push(&mut self, group: &[&[u32]]) {
        let shared = common_prefix(group);
        let prefix = self.tokens.push(group.first().map_or(&[], |text| &text[..shared]), 0, 0..0);
        for text in group {
            let own = self.tokens.push(&text[shared..], shared, prefix.clone());
            let last = if own.is_empty() { prefix.end } else { own.end } - 1;
            self.ends.push(last as u32);
        }
    }

    /// Puts groups of texts into batches of at most `max_tokens` tokens, in order, and never cuts one: an objective that
    /// compares the texts of a group sees them together. A group that does not fit stands alone.
    #[must_use]
    pub fn pack_whole(groups: &[&[&[u32]]], max_tokens: usize) -> Vec<Self> {
        let mut batches: Vec<Self> = Vec::new();
        for group in groups {
            let is_full = |batch: &Self| batch.tokens.ids.len() + num_tokens(group) > max_tokens;
            if batches.last().is_none_or(is_full) {
                batches.push(Self::default());
            }
            if let Some(batch) = batches.last_mut() {
                batch.push(group);
            }
        }
        batches
    }

    /// The tokens that a group of texts takes.
    #[must_use]
    pub fn num_tokens(group: &[&[u32]]) -> usize {
        num_tokens(group)
    }
}

/// Tokens that all texts begin with.
fn common_prefix(group: &[&[u32]]) -> usize {
    let Some((first, rest)) = group.split_first() else { return 0 };
    rest.iter()
        .fold(first.len(), |shared, text| first[..shared].iter().zip(text.iter()).take_while(|(a, b)| a == b).count())
}

fn num_tokens(group: &[&[u32]]) -> usize {
    let shared = common_prefix(group);
    shared + group.iter().map(|text| text.len() - shared).sum::<usize>()
}

/// Cuts a group between texts into parts of at most `max_tokens` tokens; a text that does not fit stands alone.
fn cut<'g, 'a>(group: &'g [&'a [u32]], max_tokens: usize) -> Vec<&'g [&'a [u32]]> {
    let (mut parts, mut start) = (Vec::new(), 0);
    while start < group.len() {
        let fits = |end: &usize| num_tokens(&group[start..*end]) <= max_tokens;
        let end = (start + 2..=group.len()).take_while(fits).last().unwrap_or(start + 1);
        parts.push(&group[start..end]);
        start = end;
    }
    parts
}

/// The scores of texts, in order, run in batches of at most `max_tokens` tokens. Texts that begin alike, such as the
/// completions of a prompt, stand in one group; no text is empty.
///
/// # Errors
/// Fails where the model has no score head, and for ids outside of its vocabulary.
pub fn score_groups(model: &Decoder, groups: &[Vec<&[u32]>], max_tokens: usize) -> Result<Vec<f64>> {
    let total: usize = groups.iter().map(|group| num_tokens(group)).sum();
    let in_threads = model.runs_in_threads();
    // Each thread takes batches of its own: the products of a few texts are too short to be shared.
    let size = if in_threads { total.div_ceil(2 * rayon::current_num_threads()) } else { total };
    let size = size.clamp(1, max_tokens.max(1));
    let parts: Vec<&[&[u32]]> = groups.iter().flat_map(|group| cut(group, size)).collect();
    let batches = ScoreBatch::pack_whole(&parts, size);
    let run = |batch: &ScoreBatch| scores(&model.forward(&batch.tokens, None)?, &batch.ends, model.head());
    let found: Result<Vec<Vec<f64>>> =
        if in_threads { batches.par_iter().map(run).collect() } else { batches.iter().map(run).collect() };
    Ok(found?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Compute;
    use crate::model::{Family, ModelConfig, Params, Task, init_weights};
    use crate::ops::attention::Segment;
    use std::path::Path;

    fn model() -> Decoder {
        let path = Path::new("data/starter/config.json");
        let text = std::fs::read_to_string(path).unwrap();
        let config = ModelConfig::parse(&text, path).unwrap();
        let config = ModelConfig { task: Task::SequenceClassification, num_hidden_layers: 2, ..config };
        let params = Params::new(init_weights(&config, 3), &Compute::cpu(), false).unwrap();
        Decoder::new(config, params).unwrap()
    }

    /// Written out: the beginning stands once, a text that is the beginning of the others is read at its end, and a text
    /// by itself is all beginning.
    #[test]
    fn texts_that_begin_alike_are_laid_out_once() {
        let mut batch = ScoreBatch::default();
        batch.push(&[&[1, 2, 3, 4], &[1, 2], &[1, 2, 5]]);
        batch.push(&[&[7, 8]]);
        assert_eq!(batch.tokens.ids, [1, 2, 3, 4, 5, 7, 8]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 3, 2, 0, 1]);
        assert_eq!(batch.ends, [3, 1, 4, 6]);
        let segments = [(0..2, 0..0), (2..4, 0..2), (4..5, 0..2), (5..7, 0..0)];
        assert_eq!(batch.tokens.segments, segments.map(|(rows, prefix)| Segment { rows, prefix }));
    }

    #[test]
    fn groups_are_cut_between_texts_and_pairs_are_not() {
        let group: &[&[u32]] = &[&[1, 2, 3], &[1, 2, 4], &[1, 5], &[1, 2, 3, 4, 5, 6]];
        let lengths = |max| cut(group, max).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lengths(100), [4]);
        // The first three texts share only their first token: 1 + 2 + 2 + 1.
        assert_eq!(lengths(6), [3, 1]);
        assert_eq!(lengths(4), [2, 1, 1]);
        assert_eq!(lengths(1), [1, 1, 1, 1]);
        let batches = ScoreBatch::pack_whole(&[group, &group[..2], &group[..2]], 8);
        assert_eq!(batches.iter().map(|batch| batch.ends.len()).collect::<Vec<_>>(), [4, 4]);
    }

    /// Alone, grouped, in small batches and large, on one thread and on two: the same bits.
    #[test]
    fn a_score_depends_on_its_text_alone() {
        let model = model();
        assert_eq!(model.config().family, Family::Qwen2);
        let texts: Vec<Vec<u32>> = (0..12u32)
            .map(|i| [7, 9, 11].into_iter().chain((0..=i % 5).map(|k| (i * 31 + k * 17) % 90)).collect())
            .collect();
        let all: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let bits = |scores: Vec<f64>| scores.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let alone: Vec<Vec<&[u32]>> = all.iter().map(|text| vec![*text]).collect();
        let expected = bits(score_groups(&model, &alone, 1).unwrap());
        assert!(expected.iter().collect::<std::collections::HashSet<_>>().len() > 10);
        for max_tokens in [1, 7, 1000] {
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| score_groups(&model, std::slice::from_ref(&all), max_tokens).unwrap());
                assert_eq!(bits(found), expected, "{max_tokens} tokens, {threads} threads");
            }
        }
        assert_eq!(score_groups(&model, &[], 7).unwrap(), Vec::<f64>::new());
    }
}
