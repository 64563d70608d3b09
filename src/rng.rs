//! Counter-based randomness: every draw has a name, and the name decides the value.
//!
//! A draw is a pure function of `(seed, stream, a, b, c, d)`; there is no generator state to save, and batch size,
//! thread count and order change nothing. The mixing function is Philox4x32-10 (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011), keyed by the seed and the stream.

/// What a draw is for. Streams with different names are independent for the same seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Token sampling: `(step, prompt, completion, position)`.
    Sampling = 1,
    /// Order of the training rows: `(epoch, position, source, 0)`.
    Shuffle = 2,
    /// Initial weights: `(tensor, element, 0, 0)`.
    Init = 3,
    /// Synthetic data: `(set, row, draw, 0)`.
    Data = 4,
    /// Which of several sources training rows come from: `(epoch, position, 0, 0)`.
    Mix = 5,
    /// First weights of an adapter: `(module, element, 0, 0)`.
    Adapter = 6,
    /// What dropout leaves out: `(update, micro-batch, 0, 0)`, then `(module, 0, 0, 0)` with that as the seed.
    Dropout = 7,
    /// Pauses between tries, by process instead of seed: `(request, try, 0, 0)`.
    Retry = 8,
}

const ROUND_MULTIPLIERS: (u32, u32) = (0xD251_1F53, 0xCD9E_8D57);
const WEYL: (u32, u32) = (0x9E37_79B9, 0xBB67_AE85);

/// One Philox4x32-10 block: 128 random bits for a 128-bit counter and a 64-bit key.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(ROUND_MULTIPLIERS.0) * u64::from(counter[0]);
        let high = u64::from(ROUND_MULTIPLIERS.1) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL.0), key[1].wrapping_add(WEYL.1)];
    }
    counter
}

/// 64 random bits for the draw `(seed, stream, at)`.
#[must_use]
pub fn bits(seed: u64, stream: Stream, at: [u64; 4]) -> u64 {
    // The stream and the high halves of the coordinates are folded into the key by a block of their own, so that no
    // coordinate is cut to 32 bits.
    let key = philox(
        [
            stream as u32,
            (at[0] >> 32) as u32,
            (at[1] >> 32) as u32,
            (at[2] >> 32) as u32 ^ ((at[3] >> 32) as u32).rotate_left(16),
        ],
        [seed as u32, (seed >> 32) as u32],
    );
    let block = philox([at[0] as u32, at[1] as u32, at[2] as u32, at[3] as u32], [key[0] ^ key[2], key[1] ^ key[3]]);
    (u64::from(block[0]) << 32) | u64::from(block[1])
}

/// A uniform draw in the open interval (0, 1), with 53 bits.
#[must_use]
pub fn uniform(seed: u64, stream: Stream, at: [u64; 4]) -> f64 {
    ((bits(seed, stream, at) >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64)
}

/// A uniform integer in `0..n` (`n` > 0), by the multiply-shift method; its bias is below `n / 2^64`.
#[must_use]
pub fn below(seed: u64, stream: Stream, at: [u64; 4], n: u64) -> u64 {
    ((u128::from(bits(seed, stream, at)) * u128::from(n)) >> 64) as u64
}

/// A standard normal draw (Box and Muller, 1958).
#[must_use]
pub fn normal(seed: u64, stream: Stream, at: [u64; 4]) -> f64 {
    let radius = (-2.0 * uniform(seed, stream, [at[0], at[1], at[2], at[3] * 2]).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(seed, stream, [at[0], at[1], at[2], at[3] * 2 + 1])).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that ship with the authors' Random123 library.
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([0xffff_ffff; 4], [0xffff_ffff; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Each coordinate, its high half included, and the stream change the draw.
    #[test]
    fn every_coordinate_counts() {
        let base = bits(1, Stream::Sampling, [5, 6, 7, 8]);
        assert_ne!(base, bits(2, Stream::Sampling, [5, 6, 7, 8]));
        assert_ne!(base, bits(1 << 40, Stream::Sampling, [5, 6, 7, 8]));
        assert_ne!(base, bits(1, Stream::Shuffle, [5, 6, 7, 8]));
        for axis in 0..4 {
            for change in [1u64, 1 << 33, 1 << 50] {
                let mut at = [5, 6, 7, 8];
                at[axis] ^= change;
                assert_ne!(base, bits(1, Stream::Sampling, at), "axis {axis}, change {change:#x}");
            }
        }
    }

    /// Means and variances of 100,000 draws lie within five standard errors of theory.
    #[test]
    fn draws_have_the_right_moments() {
        let n = 100_000u64;
        let (mut mean, mut square, mut normal_mean, mut normal_square) = (0.0, 0.0, 0.0, 0.0);
        for i in 0..n {
            let u = uniform(3, Stream::Data, [i, 0, 0, 0]);
            assert!(u > 0.0 && u < 1.0);
            let z = normal(3, Stream::Init, [i, 0, 0, 0]);
            mean += u / n as f64;
            square += u * u / n as f64;
            normal_mean += z / n as f64;
            normal_square += z * z / n as f64;
        }
        assert!((mean - 0.5).abs() < 5.0 * 0.289 / 316.0);
        assert!((square - 1.0 / 3.0).abs() < 5.0 * 0.298 / 316.0);
        assert!(normal_mean.abs() < 5.0 / 316.0);
        assert!((normal_square - 1.0).abs() < 5.0 * 1.42 / 316.0);
    }
}
