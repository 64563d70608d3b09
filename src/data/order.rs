//! The order in which training draws rows: a seeded shuffle that can be entered at any position.

use crate::rng::{Stream, below};

/// The row at every position of a run. A position counts the rows drawn since the start; each pass over the data (an
/// epoch) has its own permutation, a function of seed and epoch alone. There is no state to save but the position.
#[derive(Debug, Clone)]
pub struct RowOrder {
    seed: u64,
    num_rows: usize,
    shuffle: bool,
    /// The permutation used last, with its epoch.
    epoch: Option<(u64, Vec<usize>)>,
}

impl RowOrder {
    /// An order over `num_rows` rows (at least one).
    #[must_use]
    pub fn new(seed: u64, num_rows: usize, shuffle: bool) -> Self {
        Self { seed, num_rows: num_rows.max(1), shuffle, epoch: None }
    }

    /// The pass over the data that a position belongs to, from 0.
    #[must_use]
    pub fn epoch_of(&self, position: u64) -> u64 {
        position / self.num_rows as u64
    }

    /// The row (index in `Dataset::rows`) at a position. Constant time, but for the first call in each epoch.
    pub fn row_at(&mut self, position: u64) -> usize {
        let epoch = self.epoch_of(position);
        let within = (position % self.num_rows as u64) as usize;
        if !self.shuffle {
            return within;
        }
        match &self.epoch {
            Some((cached, order)) if *cached == epoch => order[within],
            _ => {
                let order = permutation(self.seed, epoch, self.num_rows);
                let row = order[within];
                self.epoch = Some((epoch, order));
                row
            }
        }
    }
}

/// Fisher and Yates's shuffle with one named draw a place.
fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, below(seed, Stream::Shuffle, [epoch, i as u64, 0, 0], i as u64 + 1) as usize);
    }
    order
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

    impl RowOrder {
        fn tap_first(mut self, n: u64) -> Vec<usize> {
            (0..n).map(|position| self.row_at(position)).collect()
        }
    }
}
