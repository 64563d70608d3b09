//! The engine on the kernels for a GPU: what it promises holds there, too.

use super::{Completion, Engine, RolloutRequest, SamplingConfig};
use crate::model::{Decoder, ModelConfig, PackedTokens, Params, load_weights};
use crate::ops::attention::Segment;
use crate::ops::head::{Predictions, token_logprobs};
use crate::ops::testing::{compute, on_gpu};
use crate::text::{StopRules, Tokenizer};
use candle_core::DType;
use std::path::Path;

fn decoder(dtype: DType) -> Decoder {
    let folder = Path::new("data/starter");
    let config = ModelConfig::load(folder).expect("a model folder");
    let (tensors, _) = load_weights(folder, &config).expect("weights");
    Decoder::new(config, Params::new(tensors, &compute(dtype), false).expect("fits")).expect("complete")
}

fn sample(decoder: &Decoder, requests: &[RolloutRequest], slots: usize) -> Vec<Completion> {
    let tokenizer = Tokenizer::load(Path::new("data/starter")).expect("a tokenizer");
    let stop = StopRules { eos_ids: vec![0], stop_strings: vec![], max_completion_length: 6 };
    let sampling = SamplingConfig { temperature: 1.2, top_p: 0.95, ..SamplingConfig::default() };
    let engine = Engine { decoder, tokenizer: &tokenizer, sampling, stop: &stop, slots, seed: 5, step: 2 };
    let (groups, _) = engine.run(requests, &mut ()).expect("runs");
    groups.into_iter().flat_map(|group| group.completions).collect()
}

/// The log-probs of a prompt's completions as the trainer computes them.
fn trained(decoder: &Decoder, prompt: &[u32], completions: &[Completion]) -> Vec<f32> {
    let mut tokens = PackedTokens {
        ids: prompt.to_vec(),
        positions: (0..prompt.len() as u32).collect(),
        segments: vec![Segment { rows: 0..prompt.len(), prefix: 0..0 }],
    };
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for completion in completions {
        let (start, inner) = (tokens.ids.len(), completion.ids.len() - 1);
        tokens.ids.extend(&completion.ids[..inner]);
        tokens.positions.extend((prompt.len()..prompt.len() + inner).map(|p| p as u32));
        if inner > 0 {
            tokens.segments.push(Segment { rows: start..start + inner, prefix: 0..prompt.len() });
        }
        rows.push(prompt.len() as u32 - 1);
        rows.extend((start..start + inner).map(|row| row as u32));
        targets.extend(&completion.ids);
    }
    let hidden = decoder.forward(&tokens, None).expect("runs");
    let at = Predictions { rows: &rows, targets: &targets, temperature: 1.2 };
    token_logprobs(&hidden, decoder.head(), at).expect("runs").logprobs
}

/// The number of slots changes no completion, and the sampler's log-probs are the trainer's, to the bit.
#[test]
fn completions_do_not_depend_on_what_runs_beside_them() {
    for dtype in [DType::F32, DType::BF16] {
        let decoder = on_gpu(|| decoder(dtype));
        let request = |prompt: u64, ids: &[u32]| RolloutRequest {
            prompt_ids: ids.to_vec(),
            prompt,
            first_completion: 0,
            num_generations: 3,
        };
        let requests = [request(4, &[20, 13, 29]), request(9, &[21, 17, 13, 24, 29])];
        let many = on_gpu(|| sample(&decoder, &requests, 6));
        assert_eq!(on_gpu(|| sample(&decoder, &requests, 2)), many, "{dtype:?}");
        for (request, completions) in requests.iter().zip(many.chunks(3)) {
            let trained = on_gpu(|| trained(&decoder, &request.prompt_ids, completions));
            let sampled: Vec<f32> = completions.iter().flat_map(|c| c.sampling_logprobs.clone()).collect();
            assert_eq!(trained, sampled, "{dtype:?}");
        }
    }
}
