//! Which checkpoints stay: a pure rule over step numbers.

/// What the rotation must keep whatever the limit says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// How many checkpoints to keep (`save_total_limit`); 0 keeps all.
    pub limit: usize,
    /// The step of the best checkpoint so far, where one is tracked.
    pub best: Option<u64>,
}

/// The steps whose checkpoints go, oldest first.
///
/// The oldest go until `limit` are left; the newest and the best never go, so with `limit` 1 two may stay.
#[must_use]
pub fn checkpoints_to_remove(steps: &[u64], keep: Keep) -> Vec<u64> {
    if keep.limit == 0 {
        return Vec::new();
    }
    let mut sorted = steps.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let excess = sorted.len().saturating_sub(keep.limit);
    let newest = sorted.pop();
    sorted.into_iter().filter(|step| Some(*step) != keep.best && Some(*step) != newest).take(excess).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_go_and_newest_and_best_stay() {
        type Case<'a> = (&'a [u64], usize, Option<u64>, &'a [u64]);
        let cases: [Case<'_>; 8] = [
            (&[], 3, None, &[]),
            (&[5, 10], 0, None, &[]),
            (&[5, 10, 15], 3, None, &[]),
            (&[100, 5, 20], 2, None, &[5]),
            (&[5, 10, 15, 20], 2, Some(5), &[10, 15]),
            (&[5, 10, 15], 1, Some(5), &[10]),
            (&[5, 10], 1, Some(10), &[5]),
            (&[5, 10], 1, Some(5), &[]),
        ];
        for (steps, limit, best, expected) in cases {
            assert_eq!(checkpoints_to_remove(steps, Keep { limit, best }), expected, "{steps:?} {limit} {best:?}");
        }
    }
}
