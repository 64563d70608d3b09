//! The score head of a reward model: one number for each of a few rows of hidden states.
//!
//! There are as many rows as there are texts, so this is a handful of products beside the decoder's: they are made on
//! the host, in f64, in one order whatever the threads are.

use super::Weight;
use super::elementwise::add_into;
use super::embedding::{gather_rows, scatter_add_rows};
use candle_core::{DType, Result, Tensor, bail};

/// `score_i = hidden[rows_i] . head`.
///
/// # Shapes
/// `hidden [N, D]`, `rows [B]`, `head [1, D] -> [B]`
///
/// # Errors
/// Fails for a row outside `hidden` and for a head of another shape.
pub fn scores(hidden: &Tensor, rows: &[u32], head: &Weight) -> Result<Vec<f64>> {
    let (states, head) = (states(hidden, rows)?, values(head, hidden)?);
    let dot = |state: &Vec<f32>| state.iter().zip(&head).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum();
    Ok(states.iter().map(dot).collect())
}

/// Adds the gradients of [`scores`]: `d_i head` to row `rows_i` of `d_hidden`, `sum_i d_i hidden[rows_i]` to the head's.
///
/// # Shapes
/// `d_scores [B]`, `d_hidden [N, D]`; the others as in [`scores`]
///
/// # Errors
/// As [`scores`].
pub fn scores_backward(
    d_scores: &[f64],
    hidden: &Tensor,
    rows: &[u32],
    head: &Weight,
    d_hidden: &Tensor,
) -> Result<()> {
    if d_scores.len() != rows.len() {
        bail!("{} gradients of {} scores", d_scores.len(), rows.len());
    }
    let (states, weights) = (states(hidden, rows)?, values(head, hidden)?);
    let upstream: Vec<f32> =
        d_scores.iter().flat_map(|d| weights.iter().map(move |w| (d * f64::from(*w)) as f32)).collect();
    let upstream = Tensor::from_vec(upstream, (rows.len(), weights.len()), hidden.device())?;
    scatter_add_rows(d_hidden, rows, &upstream.to_dtype(d_hidden.dtype())?)?;
    let Some(grad) = head.grad() else { return Ok(()) };
    let mut sums = vec![0.0; weights.len()];
    for (d, state) in d_scores.iter().zip(&states) {
        sums.iter_mut().zip(state).for_each(|(sum, h)| *sum += d * f64::from(*h));
    }
    let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
    add_into(grad, &Tensor::from_vec(sums, (1, weights.len()), grad.device())?)
}

/// The rows of the hidden states, f32.
fn states(hidden: &Tensor, rows: &[u32]) -> Result<Vec<Vec<f32>>> {
    gather_rows(hidden, rows)?.to_dtype(DType::F32)?.to_vec2()
}

/// The exact values of the head.
fn values(head: &Weight, hidden: &Tensor) -> Result<Vec<f32>> {
    let width = hidden.dim(1)?;
    if head.master().dims() != [1, width] {
        bail!("a score head {:?} for hidden states of width {width}", head.master().dims());
    }
    head.master().to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, device, on_each_device, random, reference_gradients, variable};

    /// A row that is read twice and rows that are not read, against candle's own differentiation in f64.
    #[test]
    fn scores_and_gradients_are_those_of_the_plain_product() {
        on_each_device(|| {
            for (n, width) in [(5, 7), (1, 1), (33, 16)] {
                let (hidden, head) = (random(&[n, width], 1), Weight::trainable(random(&[1, width], 2))?);
                let rows: Vec<u32> = [0, n / 2, n - 1, 0].map(|row| row as u32).to_vec();
                let d_scores = [0.5, -1.25, 2.0, 0.125];
                let (h, w) = (variable(&hidden), variable(head.value()));
                let index = Tensor::new(&rows[..], &device())?;
                let expected = h.index_select(&index, 0)?.matmul(&w.t()?)?;
                let found = scores(&hidden, &rows, &head)?;
                for (a, b) in found.iter().zip(expected.flatten_all()?.to_vec1::<f64>()?) {
                    assert!((a - b).abs() < 1e-12 * b.abs().max(1.0), "{a} {b}");
                }
                let upstream = Tensor::new(&d_scores, &device())?.reshape((4, 1))?;
                let grads = reference_gradients(&expected, &upstream, &[&h, &w])?;
                let d_hidden = hidden.zeros_like()?;
                scores_backward(&d_scores, &hidden, &rows, &head, &d_hidden)?;
                assert_close(&d_hidden, &grads[0], 1e-6);
                let grad = head.grad().expect("trainable");
                assert_close(grad, &grads[1], 1e-6);
                // A second call adds.
                scores_backward(&d_scores, &hidden, &rows, &head, &d_hidden)?;
                assert_close(grad, &(&grads[1] * 2.0)?, 1e-6);
                assert_close(&d_hidden, &(&grads[0] * 2.0)?, 1e-6);
            }
            Ok(())
        })
        .expect("runs");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (hidden, head) = (random(&[3, 4], 1), Weight::frozen(random(&[1, 4], 2)));
        assert!(scores(&hidden, &[3], &head).is_err());
        assert!(scores(&hidden, &[0], &Weight::frozen(random(&[2, 4], 2))).is_err());
        let d_hidden = hidden.zeros_like().expect("fits");
        assert!(scores_backward(&[1.0], &hidden, &[0, 1], &head, &d_hidden).is_err());
        assert!(scores_backward(&[1.0], &hidden, &[0], &head, &d_hidden).is_ok(), "a frozen head");
    }
}
