//! What is logged about a policy objective: sums and extremes that merge over the micro-batches of a step.

/// Sums over tokens or rows and extremes over rows, to be merged over the micro-batches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ObjectiveStats {
    /// Active tokens.
    pub active_tokens: u64,
    /// Sum of the KL estimate, nats; 0 without reference log-probs. Over `kl_count` it is the metric `kl`.
    pub kl_sum: f64,
    /// Estimates in `kl_sum`: the active tokens, or with `sequence_squared` the rows.
    pub kl_count: u64,
    /// Ratios: the active tokens; the rows where a row has one ratio; 0 where there is none. The count under
    /// `low_clipped` and `high_clipped`.
    pub ratio_count: u64,
    /// Ratios clipped below: `clip_ratio/low_mean` times `ratio_count`.
    pub low_clipped: u64,
    /// Ratios clipped above: `clip_ratio/high_mean` times `ratio_count`; with `cispo` those above the cap.
    pub high_clipped: u64,
    /// Least share of a row's ratios that is clipped below, over rows that have any: `clip_ratio/low_min`. `None`
    /// where the objective clips nothing.
    pub low_min: Option<f64>,
    /// Greatest share of a row's ratios that is clipped above, over rows that have any: `clip_ratio/high_max`. `None`
    /// where the objective clips nothing.
    pub high_max: Option<f64>,
}

impl ObjectiveStats {
    /// Adds the statistics of another micro-batch of the same step.
    pub fn merge(&mut self, other: &Self) {
        self.active_tokens += other.active_tokens;
        self.kl_sum += other.kl_sum;
        self.kl_count += other.kl_count;
        self.ratio_count += other.ratio_count;
        self.low_clipped += other.low_clipped;
        self.high_clipped += other.high_clipped;
        self.low_min = [self.low_min, other.low_min].into_iter().flatten().reduce(f64::min);
        self.high_max = [self.high_max, other.high_max].into_iter().flatten().reduce(f64::max);
    }

    /// Ratios clipped on either side: `clip_ratio/region_mean` times `ratio_count`.
    #[must_use]
    pub fn region_clipped(&self) -> u64 {
        self.low_clipped + self.high_clipped
    }

    /// Adds one row's counts of clipped ratios.
    pub(super) fn add_row(&mut self, ratios: u64, low: u64, high: u64) {
        if ratios == 0 {
            return;
        }
        let row = Self {
            low_clipped: low,
            high_clipped: high,
            low_min: Some(low as f64 / ratios as f64),
            high_max: Some(high as f64 / ratios as f64),
            ..Self::default()
        };
        self.merge(&row);
    }
}
