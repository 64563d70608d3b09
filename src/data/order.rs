//! The order in which training draws rows: a seeded shuffle that can be entered at any position.

use crate::rng::{Stream, below};

/// The row at every position of a run. A position counts the rows drawn since the start; each pass over the data (an
/// epoch) has its own permutation, a function of seed and epoch alone. There is no state to save but the position.
///
/// Rows may come from several sources with weights. An epoch then has as many positions as there are rows, and each source
/// gets its share of them by its weight, to the nearest row and at least one. Within the epoch the sources' turns are
/// shuffled (or evenly spread, without shuffling). Every source goes through its own rows again and again, in a
/// permutation of its own each time, whatever the others do.
#[derive(Debug, Clone)]
pub struct RowOrder {
    seed: u64,
    shuffle: bool,
    num_rows: usize,
    sources: Vec<Source>,
    /// The turns of the epoch used last: of each position the source and how many turns it had before in the epoch.
    turns: Option<(u64, Vec<(u32, u32)>)>,
}

/// One source of rows.
#[derive(Debug, Clone)]
struct Source {
    /// Index of its first row.
    first: usize,
    num_rows: usize,
    /// Positions that it gets in an epoch.
    quota: usize,
    /// The permutation used last, with the pass over the source that it is of.
    pass: Option<(u64, Vec<usize>)>,
}

impl RowOrder {
    /// An order over `num_rows` rows (at least one).
    #[must_use]
    pub fn new(seed: u64, num_rows: usize, shuffle: bool) -> Self {
        Self::mixed(seed, &[(num_rows, 1.0)], shuffle)
    }

    /// An order over the rows of several sources (at least one), which follow each other: of each its number of rows (at
    /// least one) and its weight (above 0).
    #[must_use]
    pub fn mixed(seed: u64, sources: &[(usize, f64)], shuffle: bool) -> Self {
        let num_rows = sources.iter().map(|(rows, _)| (*rows).max(1)).sum::<usize>().max(1);
        let weights: Vec<f64> = sources.iter().map(|(_, weight)| *weight).collect();
        let mut first = 0;
        let sources = sources.iter().zip(quotas(num_rows, &weights)).map(|((rows, _), quota)| {
            let source = Source { first, num_rows: (*rows).max(1), quota, pass: None };
            first += source.num_rows;
            source
        });
        Self { seed, shuffle, num_rows, sources: sources.collect(), turns: None }
    }

    /// The pass over the data that a position belongs to, from 0.
    #[must_use]
    pub fn epoch_of(&self, position: u64) -> u64 {
        position / self.num_rows as u64
    }

    /// The row (its index among all rows) at a position. Constant time, but for the first call in each epoch.
    pub fn row_at(&mut self, position: u64) -> usize {
        let epoch = self.epoch_of(position);
        let within = (position % self.num_rows as u64) as usize;
        let (source, turn) = if self.sources.len() == 1 { (0, within) } else { self.turn_at(epoch, within) };
        let (seed, shuffle) = (self.seed, self.shuffle);
        let number = source as u64;
        let source = &mut self.sources[source];
        let drawn = epoch * source.quota as u64 + turn as u64;
        source.first + source.row_at(seed, shuffle, number, drawn)
    }

    /// The source whose turn a position is, and how many turns it had before in the epoch.
    fn turn_at(&mut self, epoch: u64, within: usize) -> (usize, usize) {
        let is_cached = matches!(&self.turns, Some((cached, _)) if *cached == epoch);
        if !is_cached {
            self.turns = Some((epoch, turns(self.seed, epoch, &self.sources, self.shuffle)));
        }
        let (source, turn) = self.turns.as_ref().map_or((0, 0), |(_, turns)| turns[within]);
        (source as usize, turn as usize)
    }
}

impl Source {
    /// The row (index in the source) that is drawn from it after `drawn` others.
    fn row_at(&mut self, seed: u64, shuffle: bool, number: u64, drawn: u64) -> usize {
        let pass = drawn / self.num_rows as u64;
        let within = (drawn % self.num_rows as u64) as usize;
        if !shuffle {
            return within;
        }
        match &self.pass {
            Some((cached, order)) if *cached == pass => order[within],
            _ => {
                let mut order: Vec<usize> = (0..self.num_rows).collect();
                permute(&mut order, seed, Stream::Shuffle, [pass, number]);
                let row = order[within];
                self.pass = Some((pass, order));
                row
            }
        }
    }
}

/// Positions of an epoch of `num_rows` for each source, in proportion to the weights: rounded down first, then the largest
/// remainders get one more each; a source that would get none takes one from the largest.
fn quotas(num_rows: usize, weights: &[f64]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|weight| weight / sum * num_rows as f64).collect();
    let mut quotas: Vec<usize> = shares.iter().map(|share| share.floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|a, b| shares[*b].fract().total_cmp(&shares[*a].fract()));
    let missing = num_rows.saturating_sub(quotas.iter().sum());
    for source in by_remainder.iter().cycle().take(missing) {
        quotas[*source] += 1;
    }
    while let Some(none) = quotas.iter().position(|quota| *quota == 0) {
        let Some(largest) = (0..quotas.len()).max_by_key(|source| quotas[*source]).filter(|s| quotas[*s] > 1) else {
            break;
        };
        quotas[largest] -= 1;
        quotas[none] += 1;
    }
    quotas
}

/// The turns of an epoch.
fn turns(seed: u64, epoch: u64, sources: &[Source], shuffle: bool) -> Vec<(u32, u32)> {
    let of_source =
        |(number, source): (usize, &Source)| (0..source.quota).map(move |turn| (number as u32, turn as u32));
    let mut turns: Vec<(u32, u32)> = sources.iter().enumerate().flat_map(of_source).collect();
    if shuffle {
        permute(&mut turns, seed, Stream::Mix, [epoch, 0]);
        // Turns are counted in the order in which they come.
        let mut counts = vec![0; sources.len()];
        for (source, turn) in &mut turns {
            *turn = counts[*source as usize];
            counts[*source as usize] += 1;
        }
    } else {
        // Turn j of n stands at (j + 1/2) / n of the epoch.
        let place = |(source, turn): (u32, u32)| (f64::from(turn) + 0.5) / sources[source as usize].quota as f64;
        turns.sort_by(|a, b| place(*a).total_cmp(&place(*b)).then(a.cmp(b)));
    }
    turns
}

/// Fisher and Yates's shuffle with one named draw a place.
fn permute<T>(items: &mut [T], seed: u64, stream: Stream, [pass, source]: [u64; 2]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(seed, stream, [pass, i as u64, source, 0], i as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_has_every_row_once_in_its_own_order() {
        let mut order = RowOrder::new(7, 100, true);
        let drawn: Vec<usize> = (0..300).map(|position| order.row_at(position)).collect();
        for epoch in drawn.chunks(100) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..100));
        }
        assert_ne!(drawn[..100], drawn[100..200]);
        assert_ne!(drawn[..100], RowOrder::new(8, 100, true).tap_first(100)[..]);
    }

    #[test]
    fn entering_in_the_middle_gives_the_same_rows() {
        let whole = RowOrder::new(3, 17, true).tap_first(60);
        let mut resumed = RowOrder::new(3, 17, true);
        for position in [59u64, 20, 33, 34, 0] {
            assert_eq!(resumed.row_at(position), whole[position as usize]);
        }
    }

    #[test]
    fn without_shuffling_the_file_order_stays() {
        assert_eq!(RowOrder::new(3, 3, false).tap_first(5), [0, 1, 2, 0, 1]);
    }

    /// One source is shuffled by the draws `(epoch, place, 0, 0)`: checkpoints rely on it.
    #[test]
    fn one_source_keeps_its_order() {
        let mut expected = Vec::new();
        for epoch in 0..2 {
            let mut rows: Vec<usize> = (0..10).collect();
            for i in (1..10).rev() {
                rows.swap(i, below(7, Stream::Shuffle, [epoch, i as u64, 0, 0], i as u64 + 1) as usize);
            }
            expected.extend(rows);
        }
        assert_eq!(RowOrder::new(7, 10, true).tap_first(20), expected);
        assert_eq!(RowOrder::mixed(7, &[(10, 0.3)], true).tap_first(20), expected);
    }

    #[test]
    fn each_source_gets_its_share_of_every_epoch() {
        let sizes = [60, 30, 10];
        for (weights, expected) in
            [([0.6, 0.3, 0.1], [60, 30, 10]), ([1.0, 1.0, 1.0], [34, 33, 33]), ([1000.0, 1.0, 1e-9], [98, 1, 1])]
        {
            let sources: Vec<(usize, f64)> = sizes.into_iter().zip(weights).collect();
            for shuffle in [true, false] {
                let drawn = RowOrder::mixed(3, &sources, shuffle).tap_first(500);
                for epoch in drawn.chunks(100) {
                    let count = |from: usize, to: usize| epoch.iter().filter(|row| (from..to).contains(*row)).count();
                    assert_eq!([count(0, 60), count(60, 90), count(90, 100)], expected, "{weights:?}");
                }
                // A source's own rows come equally often, whatever its share.
                let mut times = [0; 100];
                for row in &drawn {
                    times[*row] += 1;
                }
                for source in [0..60, 60..90, 90..100] {
                    let times = &times[source];
                    assert!(times.iter().max().unwrap() - times.iter().min().unwrap() <= 1, "{times:?}");
                }
            }
        }
    }

    #[test]
    fn a_mixture_is_entered_anywhere_and_depends_on_the_seed() {
        let sources = [(7, 1.0), (5, 3.0), (1, 0.5)];
        let whole = RowOrder::mixed(3, &sources, true).tap_first(90);
        for position in [89_usize, 0, 12, 13, 40, 41, 5] {
            assert_eq!(RowOrder::mixed(3, &sources, true).row_at(position as u64), whole[position]);
        }
        assert_ne!(whole, RowOrder::mixed(4, &sources, true).tap_first(90));
        assert_ne!(whole[..13], whole[13..26]);
    }

    #[test]
    fn without_shuffling_the_turns_are_spread() {
        let order = RowOrder::mixed(3, &[(4, 2.0), (2, 1.0)], false).tap_first(12);
        assert_eq!(order, [0, 4, 1, 2, 5, 3, 0, 4, 1, 2, 5, 3]);
    }

    impl RowOrder {
        fn tap_first(mut self, n: u64) -> Vec<usize> {
            (0..n).map(|position| self.row_at(position)).collect()
        }
    }
}
