//! The numbers of one step: named, ordered, and kept as sum and count where they are means.

use serde_json::{Map, Number, Value};

/// How the value of a metric comes about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Metric {
    Gauge(f64),
    Count(u64),
    Mean { sum: f64, count: u64 },
    Min(f64),
    Max(f64),
}

/// The metrics of one step, in the order in which they were first named.
///
/// ```
/// use candlewick::telemetry::StepMetrics;
/// let mut metrics = StepMetrics::new();
/// metrics.mean("reward", 3.0, 4);
/// metrics.mean("reward", 1.0, 4);
/// metrics.count("num_tokens", 120);
/// assert_eq!(metrics.value("reward"), Some(0.5));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepMetrics {
    entries: Vec<(String, Metric)>,
}

impl StepMetrics {
    /// No metrics yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value that is what it is at this step: a learning rate, a loss, a duration.
    pub fn gauge(&mut self, name: &str, value: f64) {
        *self.entry(name, Metric::Gauge(value)) = Metric::Gauge(value);
    }

    /// Sets a whole number: tokens seen since the start, bytes.
    pub fn count(&mut self, name: &str, value: u64) {
        *self.entry(name, Metric::Count(value)) = Metric::Count(value);
    }

    /// Adds `count` observations whose sum is `sum`; the metric is the mean over all that were added.
    pub fn mean(&mut self, name: &str, sum: f64, count: u64) {
        let entry = self.entry(name, Metric::Mean { sum: 0.0, count: 0 });
        let (before, number) = if let Metric::Mean { sum, count } = *entry { (sum, count) } else { (0.0, 0) };
        *entry = Metric::Mean { sum: before + sum, count: number + count };
    }

    /// Keeps the smallest of the values given under this name; a NaN stays.
    pub fn min(&mut self, name: &str, value: f64) {
        let entry = self.entry(name, Metric::Min(value));
        let before = if let Metric::Min(before) = *entry { before } else { value };
        *entry = Metric::Min(if value < before || value.is_nan() { value } else { before });
    }

    /// Keeps the largest of the values given under this name; a NaN stays.
    pub fn max(&mut self, name: &str, value: f64) {
        let entry = self.entry(name, Metric::Max(value));
        let before = if let Metric::Max(before) = *entry { before } else { value };
        *entry = Metric::Max(if value > before || value.is_nan() { value } else { before });
    }

    /// Takes over every metric of `other`, each name with `prefix` in front (`eval_` for evaluation).
    pub fn extend(&mut self, prefix: &str, other: &Self) {
        for (name, metric) in &other.entries {
            *self.entry(&format!("{prefix}{name}"), *metric) = *metric;
        }
    }

    /// The value of a metric; `None` where there is none, or a mean of nothing.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.entries.iter().find(|(known, _)| known == name).and_then(|(_, metric)| metric.value())
    }

    /// Names and values in order; `None` is a mean of nothing.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        self.entries.iter().map(|(name, metric)| (name.as_str(), metric.value()))
    }

    /// The names whose value is NaN or infinite, with that value.
    #[must_use]
    pub fn non_finite(&self) -> Vec<(&str, f64)> {
        self.iter().filter_map(|(name, value)| Some((name, value.filter(|v| !v.is_finite())?))).collect()
    }

    /// The metrics as JSON members in order; what is not finite becomes null, because NaN is not JSON.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        self.entries
            .iter()
            .map(|(name, metric)| {
                let value = match metric {
                    Metric::Count(n) => Value::from(*n),
                    other => other.value().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
                };
                (name.clone(), value)
            })
            .collect()
    }

    /// True for metrics that depend on the clock or the machine, so that two equal runs differ in them.
    #[must_use]
    pub fn is_wall_clock(name: &str) -> bool {
        let name = name.strip_prefix("eval_").unwrap_or(name);
        name == "time" || name == "step_time" || name.starts_with("perf/")
    }

    fn entry(&mut self, name: &str, initial: Metric) -> &mut Metric {
        let index = self.entries.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.entries.push((name.to_owned(), initial));
            self.entries.len() - 1
        });
        &mut self.entries[index].1
    }
}

impl Metric {
    fn value(self) -> Option<f64> {
        match self {
            Self::Gauge(value) | Self::Min(value) | Self::Max(value) => Some(value),
            Self::Count(n) => Some(n as f64),
            Self::Mean { count: 0, .. } => None,
            Self::Mean { sum, count } => Some(sum / count as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_of_uneven_parts_is_the_mean_of_all() {
        let mut metrics = StepMetrics::new();
        metrics.mean("kl", 10.0, 1);
        metrics.mean("kl", 2.0, 3);
        assert_eq!(metrics.value("kl"), Some(3.0));
        metrics.mean("empty", 0.0, 0);
        assert_eq!(metrics.value("empty"), None);
    }

    #[test]
    fn order_is_that_of_the_first_naming_and_non_finite_becomes_null() {
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", f64::NAN);
        metrics.count("num_tokens", 7);
        metrics.min("low", 2.0);
        metrics.min("low", 1.0);
        metrics.max("high", f64::INFINITY);
        metrics.gauge("loss", f64::NAN);
        let text = serde_json::to_string(&metrics.to_json()).unwrap();
        assert_eq!(text, r#"{"loss":null,"num_tokens":7,"low":1.0,"high":null}"#);
        let names: Vec<_> = metrics.non_finite().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["loss", "high"]);
    }

    #[test]
    fn a_nan_is_not_hidden_by_min_or_max() {
        let mut metrics = StepMetrics::new();
        for value in [1.0, f64::NAN, 0.5] {
            metrics.min("low", value);
            metrics.max("high", value);
        }
        assert!(metrics.value("low").unwrap().is_nan());
        assert!(metrics.value("high").unwrap().is_nan());
    }
}
