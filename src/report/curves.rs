//! The curves of the page: every metric of every run, thinned to what the page can hold, and its figures.

use super::run::{MetricRow, Run};
use serde_json::{Map, Value, json};

/// Values of all curves together; about 8 bytes each on the page.
const MAX_VALUES: usize = 90_000;
/// Rows of a run that are shown at least, however many runs there are.
const MIN_ROWS: usize = 50;
/// The final figure of a metric is the mean of this many last values.
const FINAL_VALUES: usize = 10;
/// Digits of a value on the page.
const DIGITS: usize = 6;

/// For each run its steps with their times, the curves by name, the figures by name, and how many steps a point stands for.
pub(super) fn curves(runs: &[Run]) -> Vec<Value> {
    let num_curves: usize = runs.iter().map(|run| run.names.len()).sum();
    let max_rows = (MAX_VALUES / num_curves.max(1)).max(MIN_ROWS);
    runs.iter().map(|run| of_run(run, max_rows)).collect()
}

fn of_run(run: &Run, max_rows: usize) -> Value {
    let thinning = run.rows.len().div_ceil(max_rows).max(1);
    let parts: Vec<&[MetricRow]> = run.rows.chunks(thinning).collect();
    let ends: Vec<&MetricRow> = parts.iter().filter_map(|part| part.last()).collect();
    let start = run.rows.iter().find_map(|row| row.time);
    let times: Vec<Value> = ends
        .iter()
        .map(|row| {
            row.time.zip(start).map_or(Value::Null, |(time, start)| json!(((time - start) * 10.0).round() / 10.0))
        })
        .collect();
    let (mut series, mut figures) = (Map::new(), Map::new());
    for (index, name) in run.names.iter().enumerate() {
        let points = points(&run.rows, index);
        let Some(found) = summary(&points) else { continue };
        figures.insert(name.clone(), found);
        // A metric of a few steps, such as an evaluation, keeps its points.
        let is_sparse = 2 * points.len() < run.rows.len() && points.len() <= max_rows;
        let curve = if is_sparse {
            let (steps, values): (Vec<u64>, Vec<Value>) =
                points.iter().map(|(step, value)| (*step, rounded(*value))).unzip();
            json!({"steps": steps, "values": values})
        } else {
            json!({"values": parts.iter().map(|part| mean(part, index)).collect::<Vec<_>>()})
        };
        series.insert(name.clone(), curve);
    }
    json!({
        "steps": ends.iter().map(|row| row.step).collect::<Vec<_>>(),
        "secs": times,
        "thinning": thinning,
        "num_rows": run.rows.len(),
        "series": series,
        "figures": figures,
    })
}

/// Steps and values of a metric, where it has one.
fn points(rows: &[MetricRow], index: usize) -> Vec<(u64, f64)> {
    rows.iter().filter_map(|row| Some((row.step, row.values[index]?))).collect()
}

fn mean(part: &[MetricRow], index: usize) -> Value {
    let values: Vec<f64> = part.iter().filter_map(|row| row.values[index]).collect();
    if values.is_empty() { Value::Null } else { rounded(values.iter().sum::<f64>() / values.len() as f64) }
}

/// First, last, final mean, least and greatest value, each with its step.
fn summary(points: &[(u64, f64)]) -> Option<Value> {
    let (first, last) = (points.first()?, points.last()?);
    let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
    // Of equals the earliest.
    let (low, high) = (points.iter().min_by(by_value)?, points.iter().rev().max_by(by_value)?);
    let end = &points[points.len().saturating_sub(FINAL_VALUES)..];
    let final_mean = end.iter().map(|(_, value)| value).sum::<f64>() / end.len() as f64;
    let pair = |(step, value): &(u64, f64)| json!([step, rounded(*value)]);
    Some(json!({
        "first": pair(first), "last": pair(last), "low": pair(low), "high": pair(high),
        "final": rounded(final_mean), "num_final": end.len(), "num_values": points.len(),
    }))
}

/// The value with six digits, whole numbers as such.
fn rounded(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return json!(value as i64);
    }
    let short: f64 = format!("{value:.*e}", DIGITS - 1).parse().unwrap_or(value);
    json!(short)
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_of;
    use super::*;

    #[test]
    fn a_long_run_is_thinned_to_means_and_keeps_its_evaluations() {
        let rows: String = (1..=300)
            .map(|step| {
                let eval = if step % 100 == 0 {
                    format!(r#","eval_reward":{}"#, f64::from(step) / 1000.0)
                } else {
                    String::new()
                };
                format!(r#"{{"step":{step},"time":{},"loss":{step}.5{eval}}}"#, 1000 + step) + "\n"
            })
            .collect();
        let curves = of_run(&run_of(&rows, ""), 100);
        assert_eq!(curves["thinning"], 3);
        assert_eq!(curves["steps"][0], 3);
        assert_eq!(curves["steps"].as_array().unwrap().len(), 100);
        assert_eq!(curves["secs"][0], 2.0);
        assert_eq!(curves["series"]["loss"]["values"][0], 2.5);
        assert_eq!(curves["series"]["eval_reward"], json!({"steps": [100, 200, 300], "values": [0.1, 0.2, 0.3]}));
        let figures = &curves["figures"]["loss"];
        assert_eq!((&figures["high"], &figures["low"]), (&json!([300, 300.5]), &json!([1, 1.5])));
        assert_eq!(figures["final"], json!(296));
    }

    #[test]
    fn of_equal_values_the_earliest_is_the_best() {
        let found = summary(&[(1, 0.5), (2, 1.0), (3, 1.0), (4, 0.5)]).unwrap();
        assert_eq!((&found["high"], &found["low"]), (&json!([2, 1]), &json!([1, 0.5])));
        assert!(summary(&[]).is_none());
    }

    #[test]
    fn values_keep_six_digits() {
        let shown: Vec<String> = [0.123_456_789, 1e-9, 1_234_567.0, -0.0, 2.0 / 3.0]
            .iter()
            .map(|value| rounded(*value).to_string())
            .collect();
        assert_eq!(shown, ["0.123457", "1e-9", "1234567", "0", "0.666667"]);
    }
}
