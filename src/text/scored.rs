//! A prompt with its completion as a reward model reads it: rendered whole, cut behind the token that is scored.
//!
//! The rules are those of TRL's GRPO trainer and of transformers' sequence classifiers. Training and scoring go through
//! here both: a model is asked about texts of the form that it learned.

use std::path::Path;

use serde_json::{Value, json};

use super::error::{TextError, excerpt};
use super::render::{Prompt, PromptRenderer};
use super::tokenizer::{Tokenizer, read_object};

/// Renders prompts with completions for a reward model.
#[derive(Debug, Clone)]
pub struct ScoredRenderer {
    renderer: PromptRenderer,
    pad_id: Option<u32>,
}

impl ScoredRenderer {
    /// `renderer` has the tokenizer and the chat template of the reward model, `pad_id` is its padding token.
    #[must_use]
    pub fn new(renderer: PromptRenderer, pad_id: Option<u32>) -> Self {
        Self { renderer, pad_id }
    }

    /// The tokens of a prompt with a completion, up to the one at which the score is read; empty where there are none.
    ///
    /// Plain text: prompt and completion one behind the other. A conversation: through the chat template, the completion
    /// as the assistant's turn. Neither gets further special tokens. As in transformers the score is read at the last
    /// token that is no padding token, so padding tokens at the end (where the end-of-text token serves as one) are left out.
    ///
    /// # Errors
    /// No template for a conversation, or a template error.
    pub fn render(&self, prompt: &Prompt, completion: &str) -> Result<Vec<u32>, TextError> {
        let text = match self.renderer.conversation(prompt) {
            None => format!("{}{completion}", prompt.last_text()),
            Some(messages) => self.renderer.render_messages(&with_turn(messages, completion), false)?,
        };
        let mut ids = self.renderer.tokenizer().encode(&text, false)?;
        while ids.len() > 1 && ids.last().copied() == self.pad_id {
            ids.pop();
        }
        Ok(ids)
    }
}

/// The conversation with the completion as the assistant's turn; an assistant's turn that is open is completed.
fn with_turn(mut messages: Vec<Value>, completion: &str) -> Vec<Value> {
    let open = messages.last().filter(|last| last["role"] == "assistant").and_then(|last| last["content"].as_str());
    match open.map(str::to_owned) {
        Some(begun) => {
            if let Some(last) = messages.last_mut() {
                last["content"] = Value::from(begun + completion);
            }
        }
        None => messages.push(json!({"role": "assistant", "content": completion})),
    }
    messages
}

/// The padding token of a model folder: `pad_token_id` of `config.json`, else the tokenizer's `pad_token`, else its EOS.
///
/// # Errors
/// `config.json` cannot be read, or its padding token is no id.
pub fn pad_id(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<u32>, TextError> {
    let path = folder.join("config.json");
    let config = read_object(&path)?.unwrap_or_default();
    match config.get("pad_token_id") {
        None | Some(Value::Null) => {
            let named = tokenizer.special_tokens().text("pad_token").and_then(|token| tokenizer.id(token));
            Ok(named.or(tokenizer.eos_id()))
        }
        // Llama's first configurations have -1 for no padding token.
        Some(value) if value.as_i64() == Some(-1) => Ok(tokenizer.eos_id()),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(id)) => Ok(Some(id)),
            _ => Err(TextError::BadField {
                path,
                key: "pad_token_id".to_string(),
                expected: "a token id",
                got: excerpt(&value.to_string()),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ChatTemplate;
    use std::fs;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(Path::new("data/starter")).unwrap()
    }

    fn decoded(renderer: &ScoredRenderer, prompt: &Prompt, completion: &str) -> String {
        tokenizer().decode_with_special(&renderer.render(prompt, completion).unwrap()).unwrap()
    }

    #[test]
    fn plain_text_is_joined_and_read_before_the_padding_at_its_end() {
        let eos = tokenizer().eos_id();
        let renderer = ScoredRenderer::new(PromptRenderer::new(tokenizer(), None), eos);
        let prompt = Prompt::Text("1 + 2 =".into());
        assert_eq!(decoded(&renderer, &prompt, " 3"), "1 + 2 = 3");
        assert_eq!(decoded(&renderer, &prompt, " 3<|endoftext|><|endoftext|>"), "1 + 2 = 3");
        let kept = ScoredRenderer::new(PromptRenderer::new(tokenizer(), None), None);
        assert_eq!(decoded(&kept, &prompt, " 3<|endoftext|>"), "1 + 2 = 3<|endoftext|>");
        assert_eq!(renderer.render(&Prompt::Text(String::new()), "").unwrap(), Vec::<u32>::new());
        let padding = renderer.render(&Prompt::Text(String::new()), "<|endoftext|>").unwrap();
        assert_eq!(Some(padding), eos.map(|eos| vec![eos]), "nothing but padding is read at its first token");
    }

    #[test]
    fn a_conversation_goes_through_the_template_with_the_completion_as_a_turn() {
        let template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
        let template = ChatTemplate::from_text(template).unwrap();
        let renderer = PromptRenderer::new(tokenizer(), Some(template));
        let renderer = ScoredRenderer::new(renderer, None);
        let messages = |last: Value| Prompt::Messages(vec![json!({"role": "user", "content": "1+2"}), last]);
        let system = messages(json!({"role": "system", "content": "b"}));
        assert_eq!(decoded(&renderer, &system, "3"), "u:1+2;s:b;a:3;");
        let begun = messages(json!({"role": "assistant", "content": "It is "}));
        assert_eq!(decoded(&renderer, &begun, "3"), "u:1+2;a:It is 3;");
        let bare = ScoredRenderer::new(PromptRenderer::new(tokenizer(), None), None);
        assert!(matches!(bare.render(&system, "3"), Err(TextError::NoChatTemplate)));
    }

    #[test]
    fn the_padding_token_is_the_models_or_the_tokenizers() {
        let folder = tempfile::tempdir().unwrap();
        let of = |config: &str| {
            fs::write(folder.path().join("config.json"), config).unwrap();
            pad_id(folder.path(), &tokenizer())
        };
        let own = tokenizer().id("<|endoftext|>");
        assert_eq!(of(r#"{"pad_token_id": 7}"#).unwrap(), Some(7));
        assert_eq!(of(r#"{"pad_token_id": null}"#).unwrap(), own);
        assert_eq!(of(r#"{"pad_token_id": -1}"#).unwrap(), own);
        assert_eq!(of("{}").unwrap(), own);
        assert!(of(r#"{"pad_token_id": "x"}"#).is_err());
    }
}
