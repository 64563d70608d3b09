//! The rollout engine through the library: what a completion may depend on, and that the trainer sees the sampler's
//! log-probs.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;

use std::collections::BTreeSet;

use candlewick::batch::{Group, pack};
use candlewick::device::Compute;
use candlewick::error::{Diagnose, Exit};
use candlewick::model::{Decoder, LoadedTensor, ModelConfig, PackedTokens, Params, load_weights};
use candlewick::ops::attention::Segment;
use candlewick::ops::head::{Predictions, logits, token_logprobs};
use candlewick::rollout::{
    Completion, Engine, Observer, RolloutError, RolloutGroup, RolloutProgress, RolloutRequest, RolloutStats, Sampled,
    SamplingConfig,
};
use candlewick::text::{FinishReason, StopRules, Tokenizer};
use fixtures::FAMILIES;

/// A fixture model and the settings of a rollout; tests change what they are about.
struct Setup {
    decoder: Decoder,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    stop: StopRules,
    slots: usize,
    seed: u64,
    step: u64,
}

impl Setup {
    /// About one token in eleven ends a completion: the weights are random, so no token is rare.
    fn new(name: &str) -> Self {
        let (config, tensors) = weights(name);
        Self {
            decoder: decoder(config, tensors),
            tokenizer: Tokenizer::load(&fixtures::folder(name)).unwrap(),
            sampling: SamplingConfig::default(),
            stop: StopRules { eos_ids: vec![1, 9, 20, 33, 41], stop_strings: vec![], max_completion_length: 30 },
            slots: 5,
            seed: 3,
            step: 7,
        }
    }

    fn engine(&self) -> Engine<'_> {
        Engine {
            decoder: &self.decoder,
            tokenizer: &self.tokenizer,
            sampling: self.sampling,
            stop: &self.stop,
            slots: self.slots,
            seed: self.seed,
            step: self.step,
        }
    }

    fn run(&self, requests: &[RolloutRequest]) -> (Vec<RolloutGroup>, RolloutStats) {
        self.engine().run(requests, &mut ()).unwrap()
    }

    fn error(&self, prompt_ids: Vec<u32>) -> RolloutError {
        self.engine().run(&[request(4, prompt_ids, 2)], &mut ()).unwrap_err()
    }

    /// The log-probs of all completions as the trainer computes them, by completion.
    fn trainer_logprobs(&self, rollouts: &[RolloutGroup], max_tokens: usize) -> Vec<Vec<f32>> {
        let mut number = 0..;
        let groups: Vec<Group<'_>> = rollouts
            .iter()
            .map(|group| Group {
                prompt: &group.prompt_ids,
                completions: number.by_ref().zip(&group.completions).map(|(n, c)| (n, &c.ids[..])).collect(),
            })
            .collect();
        let mut found = Vec::new();
        for batch in pack(&groups, max_tokens) {
            let hidden = self.decoder.forward(&batch.tokens, None).unwrap();
            let temperature = self.sampling.logprob_temperature();
            let at = Predictions { rows: &batch.prediction_rows, targets: &batch.targets, temperature };
            let scored = token_logprobs(&hidden, self.decoder.head(), at).unwrap();
            found.extend(batch.ranges.iter().map(|range| scored.logprobs[range.clone()].to_vec()));
        }
        found
    }

    /// The logits of each position of one sequence, by a forward pass without a cache.
    fn full_logits(&self, ids: &[u32]) -> Vec<Vec<f32>> {
        let tokens = PackedTokens {
            ids: ids.to_vec(),
            positions: (0..ids.len() as u32).collect(),
            segments: vec![Segment { rows: 0..ids.len(), prefix: 0..0 }],
        };
        let hidden = self.decoder.forward(&tokens, None).unwrap();
        logits(&hidden, self.decoder.head()).unwrap().to_vec2().unwrap()
    }

    fn text(&self, completion: &Completion) -> String {
        self.tokenizer.decode(&completion.ids).unwrap()
    }
}

fn weights(name: &str) -> (ModelConfig, Vec<LoadedTensor>) {
    let folder = fixtures::folder(name);
    let config = ModelConfig::load(&folder).unwrap();
    let (tensors, _) = load_weights(&folder, &config).unwrap();
    (config, tensors)
}

fn decoder(config: ModelConfig, tensors: Vec<LoadedTensor>) -> Decoder {
    Decoder::new(config, Params::new(tensors, &Compute::cpu(), false).unwrap()).unwrap()
}

fn request(prompt: u64, prompt_ids: Vec<u32>, num_generations: usize) -> RolloutRequest {
    RolloutRequest { prompt_ids, prompt, first_completion: 0, num_generations }
}

/// Prompts of 1 to 19 tokens with 1 to 7 completions each.
fn requests(count: u64) -> Vec<RolloutRequest> {
    let request_of = |prompt: u64| {
        let ids = (0..=prompt * 7 % 19).map(|i| ((prompt * 31 + i * 17) % 57) as u32).collect();
        request(prompt, ids, 1 + (prompt * 3 % 7) as usize)
    };
    (0..count).map(request_of).collect()
}

fn completions(rollouts: &[RolloutGroup]) -> impl Iterator<Item = &Completion> {
    rollouts.iter().flat_map(|group| &group.completions)
}

/// Tokens, bits of the log-probs, and the end of a completion.
type Bits = (Vec<u32>, Vec<u32>, FinishReason);

/// Everything about completions that could differ, log-probs by their bits.
fn bits(rollouts: &[RolloutGroup]) -> Vec<Vec<Bits>> {
    let of =
        |c: &Completion| (c.ids.clone(), c.sampling_logprobs.iter().map(|l| l.to_bits()).collect(), c.finish_reason);
    rollouts.iter().map(|group| group.completions.iter().map(of).collect()).collect()
}

/// The first of the largest values.
fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, z) in row.iter().enumerate() {
        if *z > row[best] {
            best = i;
        }
    }
    best as u32
}

/// More than a thousand tokens a family, ragged, in slots that are used many times over: the log-probs that the
/// trainer computes are the sampler's to the bit, however the trainer packs them; and no token is run twice.
#[test]
fn the_trainer_sees_the_log_probs_of_the_sampler() {
    let mut all_tokens = 0;
    for name in FAMILIES {
        for (temperature, top_k, repetition_penalty) in [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 20, 1.2)] {
            let mut setup = Setup::new(name);
            setup.sampling = SamplingConfig { temperature, top_k, repetition_penalty, ..SamplingConfig::default() };
            let requests = requests(40);
            let (rollouts, stats) = setup.run(&requests);

            let rows = completions(&rollouts).count();
            let prompt_tokens: usize = requests.iter().map(|r| r.prompt_ids.len()).sum();
            let tokens: usize = completions(&rollouts).map(|c| c.ids.len()).sum();
            let lengths: BTreeSet<usize> = completions(&rollouts).map(|c| c.ids.len()).collect();
            assert!(tokens >= 1000 && lengths.len() >= 10 && rows > 20 * setup.slots, "{name}: {tokens} {lengths:?}");
            let of_reason = |reason| completions(&rollouts).filter(move |c| c.finish_reason == reason).count();
            assert!(of_reason(FinishReason::Stop) > 0 && of_reason(FinishReason::Length) > 0, "{name}");
            assert_eq!(stats.tokens_sampled, tokens, "{name}");
            assert_eq!(stats.tokens_forwarded, prompt_tokens + tokens - rows, "{name}");

            for max_tokens in [1, 100, 8192] {
                let scored = setup.trainer_logprobs(&rollouts, max_tokens);
                let mut worst = 0.0f32;
                for (sampled, scored) in completions(&rollouts).map(|c| &c.sampling_logprobs).zip(&scored) {
                    assert_eq!(sampled.len(), scored.len());
                    worst = sampled.iter().zip(scored).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
                    assert!(sampled.iter().zip(scored).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} {worst:e}");
                }
                assert_eq!(scored.len(), rows);
                all_tokens += tokens;
            }
        }
    }
    println!("{all_tokens} log-probs compared, largest difference 0");
}

/// The same completions, to the bit, for any number of slots and threads and any order of the prompts, and when a
/// prompt's completions are asked for in two parts.
#[test]
fn completions_depend_on_nothing_that_schedules_them() {
    for name in ["llama_gqa7", "qwen3"] {
        let mut setup = Setup::new(name);
        let requests = requests(24);
        let expected = bits(&setup.run(&requests).0);
        for slots in [1, 4, 64, 0] {
            setup.slots = slots;
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| bits(&setup.run(&requests).0));
                assert_eq!(found, expected, "{name}: {slots} slots, {threads} threads");
            }
            let permuted: Vec<usize> = (0..requests.len()).map(|i| (i * 7 + slots) % requests.len()).collect();
            let found = setup.run(&permuted.iter().map(|i| requests[*i].clone()).collect::<Vec<_>>()).0;
            for (group, i) in bits(&found).into_iter().zip(permuted) {
                assert_eq!(group, expected[i], "{name}: prompt {i} of a permuted batch, {slots} slots");
            }
            // Three of the completions of a prompt, and the others from a request of their own.
            let (whole, of_whole) = (request(90, vec![5, 6, 7], 8), request(90, vec![5, 6, 7], 3));
            let rest = RolloutRequest { first_completion: 3, num_generations: 5, ..whole.clone() };
            let parts = bits(&setup.run(&[of_whole, rest]).0).concat();
            assert_eq!(parts, bits(&setup.run(&[whole]).0)[0], "{name}: {slots} slots");
        }
    }
}

/// The inverse: what names a draw changes it.
#[test]
fn completions_depend_on_seed_step_prompt_and_index() {
    let mut setup = Setup::new("mistral");
    let one = [request(5, vec![10, 11, 12], 6)];
    let expected = bits(&setup.run(&one).0);
    assert_eq!(bits(&setup.run(&one).0), expected);
    let distinct: BTreeSet<&Vec<u32>> = expected[0].iter().map(|c| &c.0).collect();
    assert_eq!(distinct.len(), 6, "the completions of a prompt differ");
    assert_ne!(bits(&setup.run(&[request(6, vec![10, 11, 12], 6)]).0), expected);
    setup.seed += 1;
    assert_ne!(bits(&setup.run(&one).0), expected);
    setup.seed -= 1;
    setup.step += 1;
    assert_ne!(bits(&setup.run(&one).0), expected);
}

/// Greedy tokens are the argmax of a forward pass over the whole sequence, and greedy is what top-k 1, a vanishing
/// top-p and min-p 1 come to.
#[test]
fn greedy_takes_the_argmax() {
    for name in FAMILIES {
        let mut setup = Setup::new(name);
        setup.sampling = SamplingConfig::greedy();
        let requests = requests(6);
        let (rollouts, _) = setup.run(&requests);
        for group in &rollouts {
            assert!(group.completions.iter().all(|c| *c == group.completions[0]), "{name}");
            let ids = [&group.prompt_ids[..], &group.completions[0].ids].concat();
            for (at, row) in setup.full_logits(&ids).iter().enumerate().skip(group.prompt_ids.len() - 1) {
                assert!(ids.get(at + 1).is_none_or(|id| *id == argmax(row)), "{name} at {at}");
            }
        }
        let ids = |rollouts: &[RolloutGroup]| completions(rollouts).map(|c| c.ids.clone()).collect::<Vec<_>>();
        let plain = SamplingConfig::default();
        for sampling in [
            SamplingConfig { top_k: 1, ..plain },
            SamplingConfig { top_p: 1e-6, ..plain },
            SamplingConfig { min_p: Some(1.0), ..plain },
        ] {
            setup.sampling = sampling;
            assert_eq!(ids(&setup.run(&requests).0), ids(&rollouts), "{name} {sampling:?}");
        }
    }
}

/// What the truncations and the penalty promise holds of every token that comes out of the engine.
#[test]
fn truncated_sampling_keeps_its_promises() {
    let mut setup = Setup::new("qwen2_untied");
    let requests = requests(12);
    let plain = SamplingConfig { temperature: 1.5, ..SamplingConfig::default() };
    let ranks = |setup: &Setup| {
        let mut ranks = Vec::new();
        for group in setup.run(&requests).0 {
            for completion in &group.completions {
                let ids = [&group.prompt_ids[..], &completion.ids].concat();
                let rows = setup.full_logits(&ids);
                for (at, id) in ids.iter().enumerate().skip(group.prompt_ids.len()) {
                    let row = &rows[at - 1];
                    let weight = |z: f32| f64::from((z - row[*id as usize]) / plain.temperature).exp();
                    let above: f64 = row.iter().filter(|z| **z > row[*id as usize]).map(|z| weight(*z)).sum();
                    let total: f64 = row.iter().map(|z| weight(*z)).sum();
                    let rank = row.iter().filter(|z| **z > row[*id as usize]).count();
                    ranks.push((rank, above / total, row.iter().map(|z| weight(*z)).fold(0.0, f64::max)));
                }
            }
        }
        ranks
    };
    setup.sampling = plain;
    let free = ranks(&setup);
    assert!(free.iter().any(|(rank, ..)| *rank > 40), "without truncation unlikely tokens occur");
    setup.sampling = SamplingConfig { top_k: 4, ..plain };
    assert!(ranks(&setup).iter().all(|(rank, ..)| *rank < 4));
    setup.sampling = SamplingConfig { top_p: 0.5, ..plain };
    assert!(ranks(&setup).iter().all(|(_, above, _)| *above < 0.5 + 1e-6));
    setup.sampling = SamplingConfig { min_p: Some(0.7), ..plain };
    assert!(ranks(&setup).iter().all(|(.., ratio)| 1.0 / ratio > 0.7 - 1e-6));

    // A penalty this large leaves no room for a token that occurred, in the prompt or since.
    setup.sampling = SamplingConfig { repetition_penalty: 1e9, ..SamplingConfig::greedy() };
    setup.stop.eos_ids.clear();
    for group in setup.run(&[request(0, vec![3, 4, 5], 1), request(1, vec![30], 1)]).0 {
        let ids = [&group.prompt_ids[..], &group.completions[0].ids].concat();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}

/// Stop rules cut a completion short and change nothing before the cut.
#[test]
fn completions_end_where_the_rules_say() {
    let mut setup = Setup::new("llama_gqa7");
    let requests = requests(20);
    setup.stop.eos_ids.clear();
    let (endless, _) = setup.run(&requests);
    assert!(completions(&endless).all(|c| c.ids.len() == 30 && c.finish_reason == FinishReason::Length));
    let is_prefix = |short: &Completion, long: &Completion| {
        long.ids.starts_with(&short.ids) && long.sampling_logprobs.starts_with(&short.sampling_logprobs)
    };

    setup.stop.eos_ids = vec![1, 12];
    for (short, long) in completions(&setup.run(&requests).0).zip(completions(&endless)) {
        assert!(is_prefix(short, long));
        let first = long.ids.iter().position(|id| setup.stop.is_eos(*id));
        assert_eq!(short.ids.len(), first.map_or(30, |at| at + 1));
        assert_eq!(short.finish_reason == FinishReason::Stop, first.is_some());
    }
    setup.stop.eos_ids.clear();

    // Two characters out of the middle of a completion that are sure to occur.
    let text = setup.text(&endless[3].completions[0]);
    let pair: String = text.chars().skip(8).take(2).collect();
    setup.stop.stop_strings = vec![pair.clone(), "ab".into()];
    let (stopped, _) = setup.run(&requests);
    let has_stop = |text: &str| text.contains(&pair) || text.contains("ab");
    for (short, long) in completions(&stopped).zip(completions(&endless)) {
        assert!(is_prefix(short, long));
        assert_eq!(short.finish_reason == FinishReason::Stop, has_stop(&setup.text(short)));
        assert_eq!(has_stop(&setup.text(short)), has_stop(&setup.text(long)));
        let before = setup.tokenizer.decode(&short.ids[..short.ids.len() - 1]).unwrap();
        assert!(!has_stop(&before), "{before:?} went on after a stop string");
    }
    assert_eq!(stopped[3].completions[0].finish_reason, FinishReason::Stop);
    setup.stop.stop_strings.clear();

    for limit in [1, 2, 9] {
        setup.stop.max_completion_length = limit;
        let (cut, stats) = setup.run(&requests);
        assert!(completions(&cut).zip(completions(&endless)).all(|(a, b)| a.ids.len() == limit && is_prefix(a, b)));
        let prompt_tokens: usize = requests.iter().map(|r| r.prompt_ids.len()).sum();
        let rows = completions(&cut).count();
        assert_eq!(stats.tokens_forwarded, prompt_tokens + rows * (limit - 1));
    }
}

/// Prompt and completion together never exceed the context, and a completion that would is truncated, not stopped.
#[test]
fn the_context_is_a_limit() {
    let mut setup = Setup::new("qwen3");
    let (mut config, tensors) = weights("qwen3");
    config.max_position_embeddings = 16;
    setup.decoder = decoder(config, tensors);
    setup.stop.eos_ids.clear();
    for prompt_len in [1, 9, 15] {
        let (rollouts, _) = setup.run(&[request(1, vec![8; prompt_len], 3)]);
        for completion in completions(&rollouts) {
            assert_eq!((completion.ids.len(), completion.finish_reason), (16 - prompt_len, FinishReason::Length));
        }
    }
    let error = setup.error(vec![8; 16]);
    assert!(matches!(error, RolloutError::PromptTooLong { prompt: 4, tokens: 16, context: 16 }), "{error}");
}

#[test]
fn impossible_prompts_and_broken_weights_are_errors() {
    let mut setup = Setup::new("qwen2_tied");
    let error = setup.error(vec![]);
    assert!(matches!(error, RolloutError::EmptyPrompt { prompt: 4 }), "{error}");
    assert_eq!(error.exit(), Exit::Data);
    let error = setup.error(vec![3, 57]);
    assert!(matches!(error, RolloutError::UnknownToken { prompt: 4, id: 57, vocab_size: 57 }), "{error}");
    assert_eq!(error.exit(), Exit::Model);
    let error = setup.error(vec![3; 512]);
    assert!(matches!(error, RolloutError::PromptTooLong { tokens: 512, context: 512, .. }), "{error}");
    assert_eq!(error.exit(), Exit::Data);

    let (config, mut tensors) = weights("qwen2_tied");
    tensors[0].data.iter_mut().for_each(|w| *w = f32::NAN);
    setup.decoder = decoder(config, tensors);
    let error = setup.error(vec![3, 4]);
    assert!(matches!(error, RolloutError::NonFinite { prompt: 4 }), "{error}");
    assert_eq!(error.exit(), Exit::NonFinite);
}

#[test]
fn nothing_asked_is_nothing_done() {
    let setup = Setup::new("qwen2_tied");
    let (rollouts, stats) = setup.run(&[]);
    assert_eq!((rollouts.len(), stats), (0, RolloutStats::default()));
    let (rollouts, stats) = setup.run(&[request(0, vec![5], 0), request(1, vec![6, 7], 2), request(2, vec![5], 0)]);
    assert_eq!(rollouts.iter().map(|group| group.completions.len()).collect::<Vec<_>>(), [0, 2, 0]);
    assert_eq!(stats.tokens_forwarded, 2 + stats.tokens_sampled - 2);
}

/// An observer sees every token once, in the order of its completion, and a progress that only grows.
#[test]
fn an_observer_sees_everything() {
    #[derive(Default)]
    struct Record {
        tokens: Vec<Sampled>,
        progress: Vec<RolloutProgress>,
    }
    impl Observer for Record {
        fn token(&mut self, sampled: Sampled) {
            self.tokens.push(sampled);
        }
        fn progress(&mut self, progress: RolloutProgress) {
            self.progress.push(progress);
        }
    }
    let setup = Setup::new("mistral");
    let mut record = Record::default();
    let (rollouts, stats) = setup.engine().run(&requests(15), &mut record).unwrap();
    for (request, group) in rollouts.iter().enumerate() {
        for (completion, expected) in group.completions.iter().enumerate() {
            let seen = record.tokens.iter().filter(|s| (s.request, s.completion) == (request, completion));
            let (ids, logprobs): (Vec<u32>, Vec<f32>) = seen.map(|s| (s.id, s.logprob)).unzip();
            assert_eq!((&ids, &logprobs), (&expected.ids, &expected.sampling_logprobs));
        }
    }
    let is_growing = |pair: &[RolloutProgress]| {
        pair[0].completions_done <= pair[1].completions_done && pair[0].tokens_sampled < pair[1].tokens_sampled
    };
    assert!(record.progress.windows(2).all(is_growing));
    let total = completions(&rollouts).count();
    let last = RolloutProgress { completions_done: total, completions: total, tokens_sampled: stats.tokens_sampled };
    assert_eq!(record.progress.last(), Some(&last));
}
