//! The learning rate of each step, as transformers' `get_*_schedule_with_warmup`.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up. transformers' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// The full rate to the end.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Falls in a straight line, to zero after the last step.
    #[default]
    Linear,
    /// Falls along half a cosine, to zero after the last step.
    Cosine,
}

/// The learning rate's factor over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LrSchedule {
    /// Shape after the warm-up.
    pub kind: LrSchedulerType,
    /// Steps over which the factor rises from 0 in a straight line.
    pub warmup_steps: u64,
    /// Optimizer steps of the whole run.
    pub num_steps: u64,
}

impl LrSchedule {
    /// The factor in [0, 1] that the learning rate is multiplied by once `steps_done` optimizer steps are done.
    ///
    /// The first optimizer step asks with 0: with a warm-up it has learning rate 0, as in transformers.
    #[must_use]
    pub fn factor(&self, steps_done: u64) -> f64 {
        if steps_done < self.warmup_steps {
            return steps_done as f64 / self.warmup_steps as f64;
        }
        let span = self.num_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            LrSchedulerType::Constant => 1.0,
            LrSchedulerType::Linear => self.num_steps.saturating_sub(steps_done) as f64 / span,
            LrSchedulerType::Cosine => {
                let progress = (steps_done - self.warmup_steps) as f64 / span;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

/// Number of warm-up steps for the setting `warmup_steps`: a count from 1 up, or a share of the run below 1 (rounded
/// up), as transformers reads it.
#[must_use]
pub fn warmup_steps(setting: f64, num_steps: u64) -> u64 {
    // The conversion of a float saturates, so a negative or absurd setting cannot wrap around.
    if setting >= 1.0 { setting as u64 } else { (num_steps as f64 * setting).ceil() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(kind: LrSchedulerType) -> Vec<f64> {
        let schedule = LrSchedule { kind, warmup_steps: 2, num_steps: 6 };
        (0..8).map(|step| schedule.factor(step)).collect()
    }

    #[test]
    fn factors_rise_then_follow_their_shape() {
        let table = [
            (LrSchedulerType::Constant, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
            (LrSchedulerType::Linear, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ];
        for (kind, expected) in table {
            for (got, expected) in factors(kind).iter().zip(expected) {
                assert!((got - expected).abs() < 1e-15);
            }
        }
        let cosine = factors(LrSchedulerType::Cosine);
        assert!((cosine[4] - 0.5).abs() < 1e-15 && cosine[6].abs() < 1e-15);
    }

    #[test]
    fn without_warmup_the_first_step_has_the_full_rate() {
        for kind in [LrSchedulerType::Constant, LrSchedulerType::Linear, LrSchedulerType::Cosine] {
            let schedule = LrSchedule { kind, warmup_steps: 0, num_steps: 5 };
            assert!((schedule.factor(0) - 1.0).abs() < 1e-15);
        }
    }

    #[test]
    fn warmup_is_a_count_or_a_share() {
        for (setting, expected) in [(0.0, 0), (0.1, 3), (0.999, 25), (1.0, 1), (7.9, 7), (-1.0, 0)] {
            assert_eq!(warmup_steps(setting, 25), expected);
        }
    }

    #[test]
    fn a_run_without_steps_has_finite_factors() {
        for kind in [LrSchedulerType::Linear, LrSchedulerType::Cosine] {
            assert!(LrSchedule { kind, warmup_steps: 0, num_steps: 0 }.factor(0).is_finite());
        }
    }
}
