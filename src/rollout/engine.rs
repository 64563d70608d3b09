//! Continuous batching: each prompt is run once, its completions decode in slots, a finished one makes room.
//!
//! The cache is a set of rows: a block for each prompt in flight, shared by its completions, and a block for each
//! slot. A completion's last token is never run, so a rollout runs exactly the prompts' tokens plus the completions'
//! tokens minus one a completion.

use super::sampler::{SamplingConfig, sample_on_gpu, sample_token};
use super::{Completion, RolloutError, RolloutGroup, RolloutRequest};
use crate::device::available_memory;
use crate::model::{Decoder, DecodingModel, KvCache, ModelConfig, NewTokens, RecordedModel};
use crate::ops::attention::Context;
use crate::ops::embedding::gather_rows;
use crate::rng::{self, Stream};
use crate::text::{FinishReason, StopRules, StopState, Tokenizer};
use candle_core::{DType, Tensor};
use std::collections::VecDeque;

/// Bytes that the cache may take when the number of slots is left to the engine.
const AUTO_CACHE_BYTES: usize = 2 << 30;
/// Tokens of prompts that are run together.
const PREFILL_TOKENS: usize = 4096;

/// Samples completions from a model.
#[derive(Debug)]
pub struct Engine<'a> {
    /// The model. Its weights are read where they are: there is no copy to keep in step with training.
    pub decoder: &'a Decoder,
    /// Turns tokens into text, for stop strings.
    pub tokenizer: &'a Tokenizer,
    /// How tokens are drawn.
    pub sampling: SamplingConfig,
    /// When completions end.
    pub stop: &'a StopRules,
    /// Completions that decode together; 0: all of them, within a bound on the cache.
    pub slots: usize,
    /// Names the draws, together with step, prompt, completion and position.
    pub seed: u64,
    /// The optimizer step that the rollout is for, from 1; 0 outside training.
    pub step: u64,
}

/// What a rollout took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RolloutStats {
    /// Tokens that went through the model.
    pub tokens_forwarded: usize,
    /// Tokens that were sampled.
    pub tokens_sampled: usize,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolloutProgress {
    /// Completions that have ended.
    pub completions_done: usize,
    /// Completions that are wanted.
    pub completions: usize,
    /// Tokens sampled so far.
    pub tokens_sampled: usize,
}

/// A token as it is sampled: completion `completion` of request `request`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// Index of the request.
    pub request: usize,
    /// Index of the completion within the request, from 0.
    pub completion: usize,
    /// The token.
    pub id: u32,
    /// Its log-prob, nats.
    pub logprob: f32,
}

/// What the engine tells while it runs.
pub trait Observer {
    /// A token was sampled.
    fn token(&mut self, _sampled: Sampled) {}
    /// All slots have moved on by a token.
    fn progress(&mut self, _progress: RolloutProgress) {}
}

/// An observer that looks away.
impl Observer for () {}

/// A prompt whose keys and values are in the cache.
struct Prefilled {
    block: usize,
    /// Logits come from the last token's hidden state: `[1, D]`.
    last_hidden: Tensor,
    unfinished: usize,
}

/// A completion that has a slot.
struct Active {
    request: usize,
    completion: usize,
    slot: usize,
    limit: usize,
    stop: StopState,
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Option<FinishReason>,
}

/// How the cache of a rollout is laid out: a block for each prompt in flight, then a block for each slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Completions that decode together.
    pub slots: usize,
    pub prompt_blocks: usize,
    /// Rows of a prompt's block.
    pub prompt_rows: usize,
    /// Rows of a completion's block: its last token is never run.
    pub completion_rows: usize,
}

impl CacheShape {
    /// For `completions` completions of `prompts` prompts of at most `longest_prompt` tokens; `slots` as in [`Engine`].
    #[must_use]
    pub fn new(
        (config, dtype): (&ModelConfig, DType),
        slots: usize,
        (prompts, completions): (usize, usize),
        longest_prompt: usize,
        max_completion_length: usize,
    ) -> Self {
        let completion_rows = max_completion_length.min(config.max_position_embeddings).saturating_sub(1);
        let bytes = KvCache::bytes(config, dtype, longest_prompt.saturating_add(completion_rows)).max(1);
        let slots = if slots == 0 { (AUTO_CACHE_BYTES / bytes).max(1) } else { slots }.min(completions);
        Self { slots, prompt_blocks: slots.min(prompts), prompt_rows: longest_prompt, completion_rows }
    }

    /// Rows of the whole cache.
    #[must_use]
    pub fn rows(&self) -> usize {
        let of_prompts = self.prompt_blocks.saturating_mul(self.prompt_rows);
        of_prompts.saturating_add(self.slots.saturating_mul(self.completion_rows))
    }
}

/// The model as it decodes on the CPU, and on a GPU.
enum Model<'a> {
    OnCpu(DecodingModel<'a>),
    OnGpu(RecordedModel<'a>),
}

impl<'a> Model<'a> {
    fn new(decoder: &'a Decoder) -> candle_core::Result<Self> {
        if !decoder.runs_in_threads() {
            return RecordedModel::new(decoder).map(Self::OnGpu);
        }
        // A copy of the weights makes decoding faster; it must not be what breaks a run.
        let has_room = available_memory().is_none_or(|free| 4 * decoder.config().num_parameters() < free / 2);
        DecodingModel::new(decoder, has_room).map(Self::OnCpu)
    }
}

/// The state of one call of [`Engine::run`].
struct Run<'a, 'e> {
    engine: &'e Engine<'a>,
    requests: &'e [RolloutRequest],
    model: Model<'a>,
    cache: KvCache,
    shape: CacheShape,
    free_blocks: Vec<usize>,
    free_slots: Vec<usize>,
    prefilled: Vec<Option<Prefilled>>,
    waiting: VecDeque<(usize, usize)>,
    done: Vec<Vec<Option<Completion>>>,
    stats: RolloutStats,
}

impl Engine<'_> {
    /// Samples the completions of every request.
    ///
    /// # Errors
    /// Fails for a prompt that is empty, too long for the model's context or made of unknown tokens, and where the
    /// model's output is not finite.
    pub fn run(
        &self,
        requests: &[RolloutRequest],
        observer: &mut dyn Observer,
    ) -> Result<(Vec<RolloutGroup>, RolloutStats), RolloutError> {
        self.check(requests)?;
        let mut run = Run::new(self, requests)?;
        let mut active: Vec<Active> = Vec::new();
        let total = requests.iter().map(|r| r.num_generations).sum();
        let mut completions_done = 0;
        while !(active.is_empty() && run.waiting.is_empty()) {
            // Completions that got a slot take their first token from the prompt's last hidden state; the others run
            // the token they sampled last.
            let moving = active.len();
            run.fill_slots(&mut active)?;
            let hidden = run.next_hidden(&active, moving)?;
            run.sample(&mut active, &hidden, observer)?;
            let (finished, going): (Vec<_>, Vec<_>) = active.into_iter().partition(|a| a.finish.is_some());
            active = going;
            completions_done += finished.len();
            for a in finished {
                run.finish(a);
            }
            let tokens_sampled = run.stats.tokens_sampled;
            observer.progress(RolloutProgress { completions_done, completions: total, tokens_sampled });
        }
        let stats = run.stats;
        let groups = run.done.into_iter().zip(requests).map(|(completions, request)| RolloutGroup {
            prompt_ids: request.prompt_ids.clone(),
            completions: completions.into_iter().flatten().collect(),
        });
        Ok((groups.collect(), stats))
    }

    fn check(&self, requests: &[RolloutRequest]) -> Result<(), RolloutError> {
        let config = self.decoder.config();
        for request in requests {
            let (prompt, tokens) = (request.prompt, request.prompt_ids.len());
            if tokens == 0 {
                return Err(RolloutError::EmptyPrompt { prompt });
            }
            if tokens >= config.max_position_embeddings {
                return Err(RolloutError::PromptTooLong { prompt, tokens, context: config.max_position_embeddings });
            }
            if let Some(id) = request.prompt_ids.iter().find(|id| **id as usize >= config.vocab_size) {
                return Err(RolloutError::UnknownToken { prompt, id: *id, vocab_size: config.vocab_size });
            }
        }
        Ok(())
    }
}

impl<'a, 'e> Run<'a, 'e> {
    fn new(engine: &'e Engine<'a>, requests: &'e [RolloutRequest]) -> Result<Self, RolloutError> {
        let total: usize = requests.iter().map(|r| r.num_generations).sum();
        let longest_prompt = requests.iter().map(|r| r.prompt_ids.len()).max().unwrap_or(0);
        let (counts, limit) = ((requests.len(), total), engine.stop.max_completion_length);
        let config = engine.decoder.config();
        let shape = CacheShape::new((config, engine.decoder.dtype()), engine.slots, counts, longest_prompt, limit);
        let waiting = requests.iter().enumerate().flat_map(|(r, q)| (0..q.num_generations).map(move |c| (r, c)));
        Ok(Self {
            engine,
            requests,
            model: Model::new(engine.decoder)?,
            cache: engine.decoder.new_cache(shape.rows())?,
            shape,
            free_blocks: (0..shape.prompt_blocks).rev().collect(),
            free_slots: (0..shape.slots).rev().collect(),
            prefilled: requests.iter().map(|_| None).collect(),
            waiting: waiting.collect(),
            done: requests.iter().map(|q| vec![None; q.num_generations]).collect(),
            stats: RolloutStats::default(),
        })
    }

    /// Gives free slots to waiting completions and runs the prompts that are seen for the first time.
    fn fill_slots(&mut self, active: &mut Vec<Active>) -> Result<(), RolloutError> {
        let mut fresh = Vec::new();
        while let (Some((request, completion)), true) = (self.waiting.front().copied(), !self.free_slots.is_empty()) {
            // A request's completions wait side by side, so a fresh one can only be the last.
            let known = self.prefilled[request].is_some() || fresh.last() == Some(&request);
            if !known {
                // There are as many blocks as slots, and each prompt in flight has at least one slot.
                if fresh.len() == self.free_blocks.len() {
                    break;
                }
                fresh.push(request);
            }
            self.waiting.pop_front();
            let Some(slot) = self.free_slots.pop() else { break };
            let context = self.engine.decoder.config().max_position_embeddings;
            let room = context - self.requests[request].prompt_ids.len();
            active.push(Active {
                request,
                completion,
                slot,
                limit: self.engine.stop.max_completion_length.min(room),
                stop: self.engine.stop.start(self.engine.tokenizer),
                ids: Vec::new(),
                logprobs: Vec::new(),
                finish: None,
            });
        }
        let mut start = 0;
        while start < fresh.len() {
            let mut end = start + 1;
            let mut tokens = self.requests[fresh[start]].prompt_ids.len();
            while end < fresh.len() && tokens + self.requests[fresh[end]].prompt_ids.len() <= PREFILL_TOKENS {
                tokens += self.requests[fresh[end]].prompt_ids.len();
                end += 1;
            }
            self.prefill(&fresh[start..end])?;
            start = end;
        }
        Ok(())
    }

    fn prefill(&mut self, requests: &[usize]) -> Result<(), RolloutError> {
        let (mut ids, mut positions, mut rows, mut contexts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut lasts = Vec::new();
        for request in requests {
            let prompt = &self.requests[*request].prompt_ids;
            let Some(block) = self.free_blocks.pop() else { break };
            let base = block * self.shape.prompt_rows;
            for position in 0..prompt.len() {
                positions.push(position as u32);
                rows.push((base + position) as u32);
                contexts.push(Context { prefix: 0..0, own: base..base + position + 1 });
            }
            ids.extend_from_slice(prompt);
            lasts.push((*request, block, ids.len() - 1));
        }
        let hidden = self.engine.decoder.forward_cached(&ids, &positions, &mut self.cache, &rows, &contexts)?;
        self.stats.tokens_forwarded += ids.len();
        for (request, block, last) in lasts {
            let last_hidden = gather_rows(&hidden, &[last as u32])?;
            let unfinished = self.requests[request].num_generations;
            self.prefilled[request] = Some(Prefilled { block, last_hidden, unfinished });
        }
        Ok(())
    }

    /// The hidden state that each active completion's next token is drawn from, `[A, D]`: the first `moving` run their
    /// last token, the others have just got their slot.
    fn next_hidden(&mut self, active: &[Active], moving: usize) -> Result<Tensor, RolloutError> {
        let mut hidden = Vec::new();
        if moving > 0 {
            let (mut ids, mut positions, mut rows, mut contexts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for a in &active[..moving] {
                let (Some(prompt), Some(id)) = (&self.prefilled[a.request], a.ids.last()) else { continue };
                let prompt_len = self.requests[a.request].prompt_ids.len();
                let (prefix, own) = (prompt.block * self.shape.prompt_rows, self.slot_row(a.slot));
                ids.push(*id);
                positions.push((prompt_len + a.ids.len() - 1) as u32);
                rows.push((own + a.ids.len() - 1) as u32);
                contexts.push(Context { prefix: prefix..prefix + prompt_len, own: own..own + a.ids.len() });
            }
            let tokens = NewTokens { ids: &ids, positions: &positions, rows: &rows, contexts: &contexts };
            hidden.push(match &mut self.model {
                Model::OnCpu(model) => model.forward(tokens, &mut self.cache)?,
                Model::OnGpu(model) => model.forward(tokens, &mut self.cache)?,
            });
            self.stats.tokens_forwarded += ids.len();
        }
        let starting = active[moving..].iter().filter_map(|a| self.prefilled[a.request].as_ref());
        hidden.extend(starting.map(|prompt| prompt.last_hidden.clone()));
        if let [hidden] = &hidden[..] {
            return Ok(hidden.clone());
        }
        Ok(Tensor::cat(&hidden, 0)?)
    }

    fn slot_row(&self, slot: usize) -> usize {
        self.shape.prompt_blocks * self.shape.prompt_rows + slot * self.shape.completion_rows
    }

    /// Draws the next token of every active completion.
    fn sample(
        &mut self,
        active: &mut [Active],
        hidden: &Tensor,
        observer: &mut dyn Observer,
    ) -> Result<(), RolloutError> {
        let (engine, requests) = (self.engine, self.requests);
        let waiting: &[Active] = active;
        let draw = |a: &Active| {
            let request = &requests[a.request];
            let completion = request.first_completion + a.completion as u64;
            let at = [engine.step, request.prompt, completion, a.ids.len() as u64];
            rng::uniform(engine.seed, Stream::Sampling, at)
        };
        let seen = |a: &Active| {
            let ids = requests[a.request].prompt_ids.iter().chain(&a.ids).copied();
            if engine.sampling.has_penalty() { ids.collect() } else { Vec::new() }
        };
        let drawn = match &self.model {
            Model::OnCpu(model) => model.map_logits(hidden, |row, z| {
                sample_token(z, &engine.sampling, &seen(&waiting[row]), draw(&waiting[row]))
            })?,
            Model::OnGpu(_) => {
                let seen: Vec<Vec<u32>> = waiting.iter().map(seen).collect();
                let draws: Vec<f64> = waiting.iter().map(draw).collect();
                sample_on_gpu(engine.decoder, hidden, &engine.sampling, &seen, &draws)?
            }
        };
        for (a, drawn) in active.iter_mut().zip(drawn) {
            let Some((id, logprob)) = drawn else {
                return Err(RolloutError::NonFinite { prompt: requests[a.request].prompt });
            };
            a.ids.push(id);
            a.logprobs.push(logprob);
            let reason = a.stop.push(engine.stop, id)?;
            a.finish = reason.or((a.ids.len() >= a.limit).then_some(FinishReason::Length));
            observer.token(Sampled { request: a.request, completion: a.completion, id, logprob });
        }
        self.stats.tokens_sampled += active.len();
        Ok(())
    }

    /// Puts a finished completion aside and frees its slot, and its prompt's block after the last of the group.
    fn finish(&mut self, a: Active) {
        self.free_slots.push(a.slot);
        if let Some(prompt) = &mut self.prefilled[a.request] {
            prompt.unfinished -= 1;
            if prompt.unfinished == 0 {
                self.free_blocks.push(prompt.block);
                self.prefilled[a.request] = None;
            }
        }
        let finish_reason = a.finish.unwrap_or(FinishReason::Length);
        self.done[a.request][a.completion] =
            Some(Completion { ids: a.ids, sampling_logprobs: a.logprobs, finish_reason });
    }
}
