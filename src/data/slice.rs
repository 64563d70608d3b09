//! A part of a split, as `datasets` writes it: `train[:500]`, `train[10%:20%]`, `test[-100:]`.

use std::fmt;
use std::ops::Range;

/// A split and the rows of it that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Name of the split.
    pub split: String,
    /// As it was written.
    text: String,
    from: Option<Bound>,
    to: Option<Bound>,
}

/// A row, or a share of all rows; below 0 it counts from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Row(i64),
    Percent(i64),
}

impl Slice {
    /// Reads `split`, or `split[from:to]` where either bound is a row, a percentage, or left out.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (split, inside) = match text.split_once('[') {
            None => (text, None),
            Some((split, rest)) => match rest.strip_suffix(']') {
                Some(inside) => (split, Some(inside)),
                None => return Err("has a `[` without a `]` at the end".to_owned()),
            },
        };
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        if split.is_empty() || !split.chars().all(is_name) {
            return Err(format!("names no split: {split:?}"));
        }
        let (from, to) = match inside.map(|inside| inside.split_once(':')) {
            None => (None, None),
            Some(None) => return Err("has no `:` between its bounds: `train[:500]` are the first 500 rows".to_owned()),
            Some(Some((from, to))) => (bound(from)?, bound(to)?),
        };
        Ok(Self { split: split.to_owned(), text: text.to_owned(), from, to })
    }

    /// The rows that count, where that does not depend on how many there are.
    pub(super) fn fixed_range(&self) -> Option<Range<u64>> {
        let fixed = |bound: Option<Bound>, default: u64| match bound {
            None => Some(default),
            Some(Bound::Row(row)) => u64::try_from(row).ok(),
            Some(Bound::Percent(_)) => None,
        };
        Some(fixed(self.from, 0)?..fixed(self.to, u64::MAX)?)
    }

    /// The rows that count of so many. Shares are rounded to the nearest row, halves to the even one, as `datasets` does.
    pub(super) fn range(&self, num_rows: u64) -> Range<u64> {
        let resolve = |bound: Option<Bound>, default: u64| -> u64 {
            let at = match bound {
                None => return default,
                Some(Bound::Row(row)) => row,
                Some(Bound::Percent(share)) => (share as f64 * num_rows as f64 / 100.0).round_ties_even() as i64,
            };
            let from_start = if at < 0 { at.saturating_add(num_rows as i64).max(0) } else { at };
            (from_start as u64).min(num_rows)
        };
        resolve(self.from, 0)..resolve(self.to, num_rows)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn bound(text: &str) -> Result<Option<Bound>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (number, is_share) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let number: i64 =
        number.parse().map_err(|_| format!("has the bound `{text}`, which is no row and no percentage"))?;
    if is_share && !(-100..=100).contains(&number) {
        return Err(format!("has the bound `{text}`: a share is from -100% to 100%"));
    }
    Ok(Some(if is_share { Bound::Percent(number) } else { Bound::Row(number) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows that `datasets` 5.2 takes (`scripts/make_data_fixtures.py` prints them).
    #[test]
    fn slices_take_the_rows_that_datasets_takes() {
        for (text, num_rows, expected) in [
            ("train", 10, 0..10),
            ("train[:3]", 10, 0..3),
            ("train[3:]", 10, 3..10),
            ("train[-3:]", 10, 7..10),
            ("train[:-3]", 10, 0..7),
            ("train[:500]", 10, 0..10),
            ("train[10%:20%]", 25, 2..5),
            ("train[:50%]", 7, 0..4),
            ("train[:50%]", 5, 0..2),
            ("train[-10%:]", 25, 23..25),
        ] {
            let slice = Slice::parse(text).unwrap();
            assert_eq!(slice.range(num_rows), expected, "{text} of {num_rows}");
            if let Some(fixed) = slice.fixed_range() {
                assert_eq!(fixed.start.min(num_rows)..fixed.end.min(num_rows), expected, "{text} of {num_rows}");
            }
        }
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        for text in
            ["", "[:5]", "train[5]", "train[:5", "train[a:b]", "train[:200%]", "train[:1.5]", "a b", "train+test"]
        {
            assert!(Slice::parse(text).is_err(), "{text}");
        }
    }
}
