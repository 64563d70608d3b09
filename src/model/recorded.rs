//! One new token for each of many sequences on a GPU: the way of [`Decoder::forward_cached`], to the bit, recorded once
//! for each number of rows and replayed. A token takes hundreds of launches, and to queue them one by one takes longer
//! than to run them.

use super::decoder::{Decoder, KvCache};
use super::decoding::{NewTokens, check};
use crate::ops::attention::{Contexts, QUERY_WORDS, query_words};
use crate::ops::embedding::RowNumbers;
use crate::ops::gpu::{self, BLOCK_ROWS, Buffer, Gpu, Inputs, Pointer, Recording};
use crate::ops::rope::RopeTable;
use crate::ops::storage::unset_as;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeMap;

/// A decoder on a GPU, and the work of a token for each number of rows that came up.
pub struct RecordedModel<'a> {
    decoder: &'a Decoder,
    gpu: Gpu,
    inv_freq: Buffer,
    /// By the number of rows; they hold for one cache only.
    steps: BTreeMap<usize, Step>,
    cache: Option<Pointer>,
}

struct Step {
    inputs: Inputs,
    hidden: Tensor,
    work: Work,
}

enum Work {
    /// Not done yet: the first time, kernels are loaded and libraries take their memory, which cannot be recorded.
    New,
    /// Done once.
    Known,
    Recorded(Recording),
    /// Every launch is queued again.
    Plain,
}

impl<'a> RecordedModel<'a> {
    /// # Errors
    /// Fails where the decoder is not on a GPU.
    pub fn new(decoder: &'a Decoder) -> Result<Self> {
        let Some(gpu) = gpu::of_device(decoder.device()) else { bail!("expected a model on a GPU") };
        let inv_freq = gpu.upload(&decoder.inv_freq)?;
        Ok(Self { decoder, gpu, inv_freq, steps: BTreeMap::new(), cache: None })
    }

    /// Hidden states after the final norm; writes the tokens' keys and values to the cache. They are overwritten by the
    /// next call.
    ///
    /// # Shapes
    /// tokens `[N] -> [N, D]`
    ///
    /// # Errors
    /// As [`DecodingModel::forward`](super::DecodingModel::forward).
    pub fn forward(&mut self, tokens: NewTokens<'_>, cache: &mut KvCache) -> Result<Tensor> {
        check(tokens, cache)?;
        let n = tokens.ids.len();
        if n == 0 {
            bail!("decoding without a token");
        }
        if let Some(id) = tokens.ids.iter().find(|id| **id as usize >= self.decoder.config.vocab_size) {
            bail!("token {id} of a vocabulary of {}", self.decoder.config.vocab_size);
        }
        let at = self.gpu.view(&cache.values)?.matrix.data;
        if self.cache.replace(at) != Some(at) {
            self.steps.clear();
        }
        let rows = padded(n);
        let mut step = match self.steps.remove(&rows) {
            Some(step) => step,
            None => self.new_step(rows)?,
        };
        // Rows without a token of their own repeat the last one, and write what it writes.
        let numbers = |of: &[u32]| (0..rows).map(|row| of[row.min(n - 1)]).collect::<Vec<u32>>();
        let contexts: Vec<_> = (0..rows).map(|row| tokens.contexts[row.min(n - 1)].clone()).collect();
        let (ids, positions, cache_rows) = (numbers(tokens.ids), numbers(tokens.positions), numbers(tokens.rows));
        let queries = contexts.iter().enumerate().flat_map(|(row, context)| query_words(row, context));
        let words: Vec<u32> = [&ids[..], &positions, &cache_rows].concat().into_iter().chain(queries).collect();
        step.inputs.fill(&words)?;
        let contexts = Contexts::given(contexts, step.inputs.at(3 * rows));
        let run = || {
            let half = self.decoder.inv_freq.len();
            let rope = RopeTable::given(step.inputs.at(rows), self.inv_freq.pointer(), rows, half);
            let ids = RowNumbers::given(&ids, step.inputs.at(0));
            let cache_rows = RowNumbers::given(&cache_rows, step.inputs.at(2 * rows));
            self.decoder.decode_into(&ids, &rope, (cache, &cache_rows), &contexts, &step.hidden)
        };
        if matches!(step.work, Work::Known) {
            step.work = match self.gpu.record(run) {
                Ok(Some(recording)) => Work::Recorded(recording),
                Ok(None) => Work::Plain,
                Err(error) => {
                    tracing::warn!("tokens are decoded without recording, which is slower: {error}");
                    Work::Plain
                }
            };
        }
        match &step.work {
            Work::Recorded(recording) => recording.replay()?,
            Work::New | Work::Known | Work::Plain => run()?,
        }
        if matches!(step.work, Work::New) {
            step.work = Work::Known;
        }
        let hidden = step.hidden.narrow(0, 0, n)?;
        self.steps.insert(rows, step);
        Ok(hidden)
    }

    fn new_step(&self, rows: usize) -> Result<Step> {
        Ok(Step {
            inputs: self.gpu.inputs(rows * (3 + QUERY_WORDS))?,
            hidden: unset_as(rows, self.decoder.config.hidden_size, self.decoder.dtype(), self.decoder.device())?,
            work: Work::New,
        })
    }
}

/// Few numbers of rows, so that few are recorded: powers of two, then whole blocks of the products.
fn padded(rows: usize) -> usize {
    if rows <= BLOCK_ROWS { rows.next_power_of_two() } else { rows.next_multiple_of(BLOCK_ROWS) }
}
