//! Building blocks of the kernels: exp, dot products, row sums. They are inlined into the kernels.
//!
//! Sums run in a fixed number of lanes with fused multiply-adds, whatever the width of the machine's vectors, so that
//! the result does not depend on the instruction set.

/// Independent partial sums of a dot product; a multiple of every vector width.
pub(crate) const LANES: usize = 16;

/// `e^x` within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
///
/// Cody-Waite reduction by ln 2 and a polynomial for 2^f, branch-free so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has few enough bits that n * LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors: n may reach 128, one more than the largest exponent of an f32.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) << 23) as u32);
    let value = p * scale(half) * scale(n.wrapping_sub(half));
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.7 { f32::INFINITY } else { value }
}

/// The sum of the lanes, pairwise in a fixed order.
#[inline(always)]
fn reduce(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = x.mul_add(*y, lanes[i]);
    }
    reduce(lanes, |x, y| x + y)
}

/// `sum of a b c`
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let (c_chunks, c_rest) = c.as_chunks::<LANES>();
    for ((x, y), z) in a_chunks.iter().zip(b_chunks).zip(c_chunks) {
        for i in 0..LANES {
            lanes[i] = (x[i] * y[i]).mul_add(z[i], lanes[i]);
        }
    }
    for (i, ((x, y), z)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
        lanes[i] = (x * y).mul_add(*z, lanes[i]);
    }
    reduce(lanes, |x, y| x + y)
}

/// `y += a * x`
#[inline(always)]
pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

/// The largest value; -infinity for an empty row. A NaN is not promised to be seen: the sum after it will be.
#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    reduce(lanes, |x, y| if y > x { y } else { x })
}

/// Replaces each value by `exp(value - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_sum_in_place(row: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            x[i] = exp(x[i] - shift);
            lanes[i] += x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - shift);
        *lane += *x;
    }
    reduce(lanes, |x, y| x + y)
}

/// `(logsumexp, entropy)` of a row of logits, in nats: H = lse - sum z softmax(z).
#[inline(always)]
pub(crate) fn logsumexp_entropy(row: &[f32]) -> (f32, f32) {
    let shift = max(row);
    let (mut sums, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    for z in chunks {
        for i in 0..LANES {
            let d = z[i] - shift;
            let e = exp(d);
            sums[i] += e;
            // A logit of -infinity has probability 0 and adds nothing; 0 * infinity would be NaN.
            weighted[i] += if e > 0.0 || e.is_nan() { e * d } else { 0.0 };
        }
    }
    for (i, z) in rest.iter().enumerate() {
        let d = z - shift;
        let e = exp(d);
        sums[i] += e;
        weighted[i] += if e > 0.0 || e.is_nan() { e * d } else { 0.0 };
    }
    let sum = reduce(sums, |x, y| x + y);
    let log_sum = sum.ln();
    (shift + log_sum, log_sum - reduce(weighted, |x, y| x + y) / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// exp agrees with the f64 function to 2.5e-7 relative over its whole range, and keeps the special values.
    #[test]
    fn exp_is_accurate_everywhere() {
        let mut worst = 0.0f64;
        for i in -87_200..88_600 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.5e-7, "{worst:e}");
        assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert!(exp(f32::INFINITY).is_infinite() && exp(f32::NAN).is_nan());
    }

    /// Odd lengths: the remainders of the lane loops count.
    #[test]
    fn row_sums_match_f64() {
        for n in [1usize, 2, 15, 16, 17, 33, 100] {
            let row: Vec<f32> = (0..n).map(|i| ((i * 37 % 11) as f32 - 5.0) * 0.7).collect();
            let exact: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            assert!((f64::from(dot(&row, &row)) - exact).abs() <= 1e-5 * exact.max(1.0));
            let total: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
            let (lse, entropy) = logsumexp_entropy(&row);
            assert!((f64::from(lse) - total.ln()).abs() < 1e-5);
            let exact: f64 = row.iter().map(|z| f64::from(*z).exp() / total * (total.ln() - f64::from(*z))).sum();
            assert!((f64::from(entropy) - exact).abs() < 1e-5, "{entropy} {exact}");
            assert!((max(&row) - row.iter().copied().fold(f32::NEG_INFINITY, f32::max)).abs() < f32::EPSILON);
        }
    }

    /// A vocabulary entry that a mask rules out (-infinity) leaves the entropy finite; a NaN does not vanish.
    #[test]
    fn special_logits() {
        let (lse, entropy) = logsumexp_entropy(&[0.0, f32::NEG_INFINITY, 0.0]);
        assert!((lse - 2.0f32.ln()).abs() < 1e-6 && (entropy - 2.0f32.ln()).abs() < 1e-6);
        assert!(logsumexp_entropy(&[0.0, f32::NAN, 0.0]).0.is_nan());
    }
}
