//! From sequences to packed micro-batches under a token budget.
//!
//! A micro-batch is `[prompt | completion 1 | ... | completion G | next prompt | ...]` without padding: a group's
//! prompt stands once and its completions attend to it. How a step is cut changes nothing but memory: the objective
//! divides by the sizes of the whole step. What the tokens are trained on is the trainer's business; nothing here knows
//! rewards or tensors.

use crate::model::PackedTokens;
use std::ops::Range;

/// A prompt with the completions to train on.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The prompt's tokens, at least one.
    pub prompt: &'a [u32],
    /// The step's number of each completion, and its tokens.
    pub completions: Vec<(usize, &'a [u32])>,
}

impl Group<'_> {
    /// Tokens that go through the model: the last token of a completion predicts nothing that is asked for.
    #[must_use]
    pub fn num_tokens(&self, completions: Range<usize>) -> usize {
        let tokens = |c: &(usize, &[u32])| c.1.len().saturating_sub(1);
        self.prompt.len() + self.completions[completions].iter().map(tokens).sum::<usize>()
    }
}

/// Tokens to run together and what they predict.
#[derive(Debug, Clone, Default)]
pub struct MicroBatch {
    /// What goes through the model, `[N]`.
    pub tokens: PackedTokens,
    /// The hidden state that predicts each completion token, `[R]`.
    pub prediction_rows: Vec<u32>,
    /// The completion tokens, `[R]`: those of `rows[0]`, then those of `rows[1]`, and so on.
    pub targets: Vec<u32>,
    /// The step's number of each completion, `[B]`.
    pub rows: Vec<usize>,
    /// Where each completion's tokens stand in `targets`, `[B]`.
    pub ranges: Vec<Range<usize>>,
}

impl MicroBatch {
    fn push(&mut self, group: &Group<'_>, completions: Range<usize>) {
        let prompt = self.tokens.push(group.prompt, 0, 0..0);
        for (row, ids) in &group.completions[completions] {
            let start = self.targets.len();
            self.targets.extend_from_slice(ids);
            self.rows.push(*row);
            self.ranges.push(start..self.targets.len());
            let Some((_, inner)) = ids.split_last() else { continue };
            self.prediction_rows.push(prompt.end as u32 - 1);
            let rows = self.tokens.push(inner, group.prompt.len(), prompt.clone());
            self.prediction_rows.extend(rows.map(|row| row as u32));
        }
    }
}

/// Tokens of the largest group.
#[must_use]
pub fn largest(groups: &[Group<'_>]) -> usize {
    groups.iter().map(|group| group.num_tokens(0..group.completions.len())).max().unwrap_or(0)
}

/// Cuts groups into micro-batches of at most `max_tokens` tokens, in order.
///
/// A group that does not fit is cut between completions, its prompt standing in each part; a single completion that
/// does not fit stands alone. Prompts have at least one token.
#[must_use]
pub fn pack(groups: &[Group<'_>], max_tokens: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for group in groups {
        let mut start = 0;
        while start < group.completions.len() {
            let room = max_tokens.saturating_sub(batches.last().map_or(max_tokens, |b| b.tokens.ids.len()));
            let rest = start..group.completions.len();
            let fits = |end: &usize, room: usize| group.num_tokens(start..*end) <= room;
            if group.num_tokens(rest.clone()) <= room
                && let Some(batch) = batches.last_mut()
            {
                batch.push(group, rest);
                break;
            }
            // A group that fits into a batch of its own is not torn to fill the one before.
            let end = rest.rev().map(|i| i + 1).find(|end| fits(end, max_tokens)).unwrap_or(start + 1);
            let mut batch = MicroBatch::default();
            batch.push(group, start..end);
            batches.push(batch);
            start = end;
        }
    }
    batches
}

/// Puts groups into micro-batches of at most `max_tokens` tokens, in order, and never cuts one: an objective that
/// couples the completions of a group sees them together. A group that does not fit stands alone.
#[must_use]
pub fn pack_whole(groups: &[Group<'_>], max_tokens: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for group in groups {
        let all = 0..group.completions.len();
        let num_tokens = group.num_tokens(all.clone());
        if batches.last().is_none_or(|batch| batch.tokens.ids.len() + num_tokens > max_tokens) {
            batches.push(MicroBatch::default());
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(group, all);
        }
    }
    batches
}

/// Cuts a text into blocks in which each of `block_size` tokens predicts its successor; the last one may be shorter.
///
/// A block's last token is the first of the next one, so that every token but the very first is predicted once.
///
/// ```
/// use candlewick::batch::blocks;
///
/// let cut: Vec<&[u32]> = blocks(&[1, 2, 3, 4, 5, 6], 2).collect();
/// assert_eq!(cut, [&[1, 2, 3][..], &[3, 4, 5], &[5, 6]]);
/// ```
pub fn blocks(ids: &[u32], block_size: usize) -> impl Iterator<Item = &[u32]> {
    let predicted = ids.len().saturating_sub(1);
    (0..predicted).step_by(block_size.max(1)).map(move |start| &ids[start..=predicted.min(start + block_size.max(1))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Segment;
    use proptest::prelude::*;

    /// Written out: positions go on after the prompt, the prompt's last row predicts each first token, and the last
    /// token of a completion is not run.
    #[test]
    fn a_group_is_laid_out_once() {
        let group = Group { prompt: &[1, 2], completions: vec![(5, &[7, 8, 9]), (6, &[4]), (7, &[])] };
        let batches = pack(&[group], 100);
        assert_eq!(batches.len(), 1);
        let batch = &batches[0];
        assert_eq!(batch.tokens.ids, [1, 2, 7, 8]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 3]);
        let segments = [Segment { rows: 0..2, prefix: 0..0 }, Segment { rows: 2..4, prefix: 0..2 }];
        assert_eq!(batch.tokens.segments, segments);
        assert_eq!(batch.prediction_rows, [1, 2, 3, 1]);
        assert_eq!(batch.targets, [7, 8, 9, 4]);
        assert_eq!((&batch.rows[..], &batch.ranges[..]), (&[5, 6, 7][..], &[0..3, 3..4, 4..4][..]));
    }

    /// Three pairs of 4 tokens each: two fit into 8 tokens, and into 3 tokens each stands alone, but whole.
    #[test]
    fn whole_groups_are_never_torn() {
        let pair = |row| Group { prompt: &[1, 2], completions: vec![(row, &[7, 8][..]), (row + 1, &[9, 8][..])] };
        let groups = [pair(0), pair(2), pair(4)];
        let rows = |max| pack_whole(&groups, max).into_iter().map(|batch| batch.rows).collect::<Vec<_>>();
        assert_eq!(rows(8), [vec![0, 1, 2, 3], vec![4, 5]]);
        assert_eq!(rows(3), [[0, 1], [2, 3], [4, 5]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the budget, every completion stands in exactly one micro-batch, whole and in order, after its own
        /// prompt, and a micro-batch exceeds the budget only where a single completion does.
        #[test]
        fn cutting_loses_nothing(
            shapes in prop::collection::vec((1usize..6, prop::collection::vec(0usize..7, 0..6)), 0..6),
            budget in 1usize..40,
        ) {
            let mut next = 0u32;
            let mut fresh = |n: usize| (0..n).map(|_| { next += 1; next }).collect::<Vec<u32>>();
            let owned: Vec<(Vec<u32>, Vec<Vec<u32>>)> = shapes
                .iter()
                .map(|(p, cs)| (fresh(*p), cs.iter().map(|c| fresh(*c)).collect()))
                .collect();
            let mut row = 0;
            let groups: Vec<Group<'_>> = owned
                .iter()
                .map(|(prompt, completions)| Group {
                    prompt,
                    completions: completions.iter().map(|c| { row += 1; (row - 1, c.as_slice()) }).collect(),
                })
                .collect();
            let batches = pack(&groups, budget);
            let all: Vec<usize> = batches.iter().flat_map(|b| b.rows.clone()).collect();
            prop_assert_eq!(all, (0..row).collect::<Vec<_>>());
            for batch in &batches {
                prop_assert!(batch.tokens.ids.len() <= budget || batch.rows.len() == 1);
                prop_assert_eq!(batch.prediction_rows.len(), batch.targets.len());
                for (row, range) in batch.rows.iter().zip(&batch.ranges) {
                    let (prompt, ids) = groups
                        .iter()
                        .find_map(|g| g.completions.iter().find(|c| c.0 == *row).map(|c| (g.prompt, c.1)))
                        .unwrap();
                    prop_assert_eq!(&batch.targets[range.clone()], ids);
                    let seen: Vec<u32> = batch.prediction_rows[range.clone()]
                        .iter()
                        .map(|r| batch.tokens.ids[*r as usize])
                        .collect();
                    // What predicts a completion is the prompt's last token and then the completion but its last.
                    let expected: Vec<u32> =
                        prompt.last().into_iter().chain(ids).copied().take(ids.len()).collect();
                    prop_assert_eq!(seen, expected);
                }
            }
        }
    }
}
