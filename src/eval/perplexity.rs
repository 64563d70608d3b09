//! How well a model predicts a text: mean negative log-likelihood and perplexity.

use crate::batch::{Group, blocks, pack};
use crate::model::Decoder;
use crate::ops::head::{Predictions, token_logprobs};

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// Mean negative log-likelihood of a token, nats.
    pub loss: f64,
    /// `exp(loss)`: as unsure as between this many tokens of equal chance.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub num_tokens: usize,
}

/// Predicts each token of a text but the first, in [`blocks`] of `block_size`: a token sees those before it in its block.
///
/// At most `max_tokens` tokens (and at least one block) are run together; the result does not depend on it beyond the
/// rounding of a sum. `None` for a text of less than two tokens.
///
/// # Errors
/// Fails where a tensor operation fails, as for a token that the model does not have.
pub fn compute_perplexity(
    decoder: &Decoder,
    ids: &[u32],
    block_size: usize,
    max_tokens: usize,
) -> candle_core::Result<Option<Perplexity>> {
    let groups: Vec<Group<'_>> = blocks(ids, block_size)
        .enumerate()
        .map(|(row, block)| Group { prompt: &block[..1], completions: vec![(row, &block[1..])] })
        .collect();
    let (mut sum, mut num_tokens) = (0.0, 0);
    for batch in pack(&groups, max_tokens) {
        let hidden = decoder.forward(&batch.tokens, None)?;
        let predictions = Predictions { rows: &batch.prediction_rows, targets: &batch.targets, temperature: 1.0 };
        let scored = token_logprobs(&hidden, decoder.head(), predictions)?;
        sum -= scored.logprobs.iter().copied().map(f64::from).sum::<f64>();
        num_tokens += scored.logprobs.len();
    }
    let loss = sum / num_tokens as f64;
    Ok((num_tokens > 0).then(|| Perplexity { loss, perplexity: loss.exp(), num_tokens }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Compute;
    use crate::model::{LoadedTensor, ModelConfig, Params, init_weights};
    use std::path::Path;

    fn decoder(change: impl Fn(&mut LoadedTensor)) -> Decoder {
        let text = r#"{"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}"#;
        let config = ModelConfig::parse(text, Path::new("config.json")).unwrap();
        let mut tensors = init_weights(&config, 5);
        tensors.iter_mut().for_each(change);
        Decoder::new(config, Params::new(tensors, &Compute::cpu(), false).unwrap()).unwrap()
    }

    /// With an output weight of zeros all 7 tokens are equally likely.
    #[test]
    fn a_model_that_knows_nothing_is_as_unsure_as_its_vocabulary() {
        let decoder = decoder(|tensor| {
            if tensor.name == "lm_head.weight" {
                tensor.data.fill(0.0);
            }
        });
        let found = compute_perplexity(&decoder, &[0, 1, 2, 3, 4, 5, 6], 4, 100).unwrap().unwrap();
        assert!((found.perplexity - 7.0).abs() < 1e-5, "{found:?}");
        assert_eq!(found.num_tokens, 6);
        assert_eq!(compute_perplexity(&decoder, &[3], 4, 100).unwrap(), None);
    }

    /// How the blocks are gathered changes nothing; how they are cut does, because a token sees its block alone.
    #[test]
    fn blocks_are_independent_of_their_batch() {
        let decoder = decoder(|tensor| tensor.data.iter_mut().for_each(|x| *x *= 30.0));
        let ids: Vec<u32> = (0..50).map(|i| i * i % 7).collect();
        let loss = |ids: &[u32], block_size, max_tokens| {
            compute_perplexity(&decoder, ids, block_size, max_tokens).unwrap().unwrap().loss
        };
        let whole = loss(&ids, 8, 1000);
        assert!((loss(&ids, 8, 1) - whole).abs() < 1e-6);
        assert!((loss(&ids, 8, 20) - whole).abs() < 1e-6);
        assert!((loss(&ids, 4, 1000) - whole).abs() > 1e-4);
        let by_hand: f64 = blocks(&ids, 8).map(|block| loss(block, 8, 100) * (block.len() - 1) as f64).sum();
        assert!((by_hand / 49.0 - whole).abs() < 1e-6);
    }
}
