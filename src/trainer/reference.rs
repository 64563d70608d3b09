//! The frozen reference policy: its log-probs, and the slow steps with which it may follow the policy.

use super::TrainError;
use super::policy::score;
use crate::batch::{Group, MicroBatch, largest, pack};
use crate::checkpoint::SavedGroup;
use crate::model::Decoder;
use crate::ops::Weight;
use candle_core::DType;
use rayon::prelude::*;
use std::ops::Range;

/// How the reference follows the policy: `reference = (1 - alpha) reference + alpha policy` every `steps` steps
/// (TR-DPO, arXiv:2404.09656 eq. 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSync {
    /// Share of the policy, above 0 to 1.
    pub alpha: f64,
    /// Optimizer steps between two such moves.
    pub steps: u64,
}

/// The policy that the trained one is held to.
#[derive(Debug)]
pub struct Reference {
    /// The model; its weights have no gradients.
    pub decoder: Decoder,
    /// `None`: it stays as it is.
    pub sync: Option<ReferenceSync>,
    /// Whether the weights are no longer those of the start model: a checkpoint then holds them.
    pub(super) has_moved: bool,
}

impl Reference {
    /// The start model as the reference.
    #[must_use]
    pub fn new(decoder: Decoder, sync: Option<ReferenceSync>) -> Self {
        Self { decoder, sync, has_moved: false }
    }

    /// Log-probs of a micro-batch's predictions, nats, `[R]`.
    ///
    /// # Errors
    /// Fails where a tensor operation fails.
    pub(super) fn logprobs(&self, batch: &MicroBatch, temperature: f32) -> Result<Vec<f32>, TrainError> {
        Ok(score(&self.decoder, batch, temperature)?.logprobs)
    }

    /// Fills in `ref_logprobs` of every completion.
    ///
    /// # Errors
    /// Fails where a tensor operation fails.
    pub(super) fn add_logprobs(
        &self,
        groups: &mut [&mut SavedGroup],
        max_tokens: usize,
        temperature: f32,
    ) -> Result<(), TrainError> {
        let mut row = 0..;
        let to_pack = groups.iter().map(|group| Group {
            prompt: &group.prompt_ids,
            // The completions first: a pair that lacks its second half would swallow a number.
            completions: group.completions.iter().zip(row.by_ref()).map(|(c, row)| (row, &c.ids[..])).collect(),
        });
        let to_pack: Vec<Group<'_>> = to_pack.collect();
        let of_batch = |batch: MicroBatch| -> Result<Vec<(usize, Vec<f32>)>, TrainError> {
            let logprobs = self.logprobs(&batch, temperature)?;
            let of_row = |range: &Range<usize>| logprobs[range.clone()].to_vec();
            Ok(batch.rows.iter().copied().zip(batch.ranges.iter().map(of_row)).collect())
        };
        let found: Result<Vec<_>, TrainError> = if self.decoder.runs_in_threads() {
            // A token's log-prob does not depend on what is run beside it: each thread takes batches of its own.
            let tokens: usize = to_pack.iter().map(|group| group.num_tokens(0..group.completions.len())).sum();
            let size = tokens.div_ceil(2 * rayon::current_num_threads()).max(largest(&to_pack)).min(max_tokens);
            pack(&to_pack, size).into_par_iter().map(of_batch).collect()
        } else {
            pack(&to_pack, max_tokens).into_iter().map(of_batch).collect()
        };
        let mut rows: Vec<_> = groups.iter_mut().flat_map(|group| &mut group.completions).collect();
        for (row, logprobs) in found?.into_iter().flatten() {
            rows[row].ref_logprobs = logprobs;
        }
        Ok(())
    }

    /// Moves towards the policy where it is time to after `step`.
    ///
    /// # Errors
    /// Fails where memory is short.
    pub(super) fn follow(&mut self, policy: &Decoder, step: u64) -> Result<(), TrainError> {
        let Some(ReferenceSync { alpha, .. }) = self.sync.filter(|sync| step.is_multiple_of(sync.steps)) else {
            return Ok(());
        };
        let alpha = alpha as f32;
        let values = |weight: &Weight| weight.master().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        for (own, other) in self.decoder.params().iter().zip(policy.params().iter()) {
            let mut mixed = values(&own.weight)?;
            mixed
                .iter_mut()
                .zip(values(&other.weight)?)
                .for_each(|(own, other)| *own = (1.0 - alpha) * *own + alpha * other);
            own.weight.set(mixed)?;
        }
        self.has_moved = true;
        tracing::info!("step {step}: the reference moved towards the policy");
        Ok(())
    }
}
