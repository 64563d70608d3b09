//! Continuing one prompt, token by token.

use super::RecipeError;
use super::parts::{check_device, load_model, sampling};
use crate::config::RunConfig;
use crate::rollout::{Completion, Engine, Observer, RolloutRequest, Sampled};
use crate::text::{Prompt, TextStream};
use serde_json::json;

/// What is continued.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The text to continue, or the user's turn.
    pub prompt: String,
    /// Put the prompt into the model's chat template as a user's turn.
    pub chat: bool,
}

/// Streams the text of one completion to `show` as it grows.
struct Streamer<'a> {
    stream: TextStream,
    show: &'a mut dyn FnMut(&str),
}

impl Observer for Streamer<'_> {
    fn token(&mut self, sampled: Sampled) {
        // A token that does not decode shows nothing; the whole completion is decoded again by the caller.
        if let Ok(Some(text)) = self.stream.push(sampled.id) {
            (self.show)(&text);
        }
    }
}

/// Samples one completion; `show` gets its text in pieces.
///
/// # Errors
/// Fails where the model cannot be read, the prompt cannot be rendered, or the completion cannot be sampled.
pub fn generate(
    settings: &RunConfig,
    options: &GenerateOptions,
    show: &mut dyn FnMut(&str),
) -> Result<Completion, RecipeError> {
    let compute = check_device(settings)?;
    let (revision, template) = (settings.revision.as_deref(), settings.chat_template.as_deref());
    let model = load_model(&settings.model, revision, settings.offline, template)?;
    let prompt = if options.chat {
        if model.template.is_none() {
            return Err(RecipeError::NoChatTemplate { folder: model.resolved.folder });
        }
        Prompt::Messages(vec![json!({ "role": "user", "content": options.prompt })])
    } else {
        Prompt::Text(options.prompt.clone())
    };
    let rendered = model.renderer(settings).render(&prompt)?;
    let (decoder, _) = model.decoder(&compute, false)?;
    let stop = model.stop_rules(&settings.stop, settings.max_completion_length);
    let engine = Engine {
        decoder: &decoder,
        tokenizer: &model.tokenizer,
        sampling: sampling(settings),
        stop: &stop,
        slots: 1,
        seed: settings.seed,
        step: 0,
    };
    let request = RolloutRequest { prompt_ids: rendered.ids, prompt: 0, first_completion: 0, num_generations: 1 };
    let mut streamer = Streamer { stream: TextStream::new(model.tokenizer.clone()), show };
    let (mut groups, _) = engine.run(&[request], &mut streamer)?;
    if let Ok(Some(text)) = streamer.stream.finish() {
        (streamer.show)(&text);
    }
    let completion = groups.pop().and_then(|mut group| group.completions.pop());
    completion.ok_or_else(|| candle_core::Error::Msg("the engine returned no completion".into()).into())
}
