//! From a prompt to the token ids that the model reads.

use serde_json::{Map, Value, json};

use super::chat::{ChatTemplate, RenderOptions};
use super::error::{TextError, excerpt};
use super::tokenizer::Tokenizer;

/// A prompt as the data has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// A conversation: objects with a `role` and mostly a `content`.
    Messages(Vec<Value>),
}

impl Prompt {
    /// The text, or the content of the last message: what a person would call the question.
    #[must_use]
    pub fn last_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => {
                messages.last().and_then(|m| m.get("content")).and_then(Value::as_str).unwrap_or_default()
            }
        }
    }
}

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The text that was tokenised.
    pub text: String,
    /// Its token ids; never empty.
    pub ids: Vec<u32>,
    /// The messages behind the text, a system prompt included; `None` of plain text.
    pub messages: Option<Vec<Value>>,
}

/// Turns prompts into token ids: tokenizer, chat template, system prompt and template variables of a run.
#[derive(Debug, Clone)]
pub struct PromptRenderer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    system_prompt: Option<String>,
    template_kwargs: Map<String, Value>,
    text_as_user: bool,
}

impl PromptRenderer {
    #[must_use]
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Self { tokenizer, template, system_prompt: None, template_kwargs: Map::new(), text_as_user: false }
    }

    /// A system message to put in front of every conversation that has none. It makes plain text a user message too.
    #[must_use]
    pub fn with_system_prompt(mut self, system_prompt: Option<String>) -> Self {
        self.system_prompt = system_prompt;
        self
    }

    /// Further variables of the template, such as `enable_thinking`.
    #[must_use]
    pub fn with_template_kwargs(mut self, kwargs: Map<String, Value>) -> Self {
        self.template_kwargs = kwargs;
        self
    }

    /// Makes a conversation of one user message out of each plain text.
    #[must_use]
    pub fn with_text_as_user(mut self, text_as_user: bool) -> Self {
        self.text_as_user = text_as_user;
        self
    }

    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The text and the token ids of a prompt.
    ///
    /// Plain text gets the special tokens that the tokenizer adds, but no EOS at its end. A conversation is rendered
    /// with the head of an assistant turn at its end and tokenised without further special tokens; if its last message
    /// is the assistant's, that message is left open for the model to continue.
    ///
    /// # Errors
    /// No template for a conversation, a template error, or a prompt without tokens.
    pub fn render(&self, prompt: &Prompt) -> Result<RenderedPrompt, TextError> {
        let rendered = match self.conversation(prompt) {
            None => {
                let text = prompt.last_text().to_string();
                let ids = self.encode_plain(&text)?;
                RenderedPrompt { text, ids, messages: None }
            }
            Some(messages) => {
                let text = self.render_open(&messages)?;
                let ids = self.tokenizer.encode(&text, false)?;
                RenderedPrompt { text, ids, messages: Some(messages) }
            }
        };
        if rendered.ids.is_empty() {
            return Err(TextError::EmptyPrompt { excerpt: excerpt(&rendered.text) });
        }
        Ok(rendered)
    }

    /// A prompt and a given completion, for supervised fine-tuning: the prompt as `render` gives it (for an empty plain
    /// text maybe without tokens) and the ids of the completion, with what closes it.
    ///
    /// A plain completion is closed by the tokenizer's EOS, if there is one. In a conversation it is what the template
    /// adds for the assistant's turn.
    ///
    /// # Errors
    /// As `render`; or the template changes the prompt when a turn follows.
    pub fn render_pair(&self, prompt: &Prompt, completion: &str) -> Result<(RenderedPrompt, Vec<u32>), TextError> {
        let Some(mut messages) = self.conversation(prompt) else {
            let text = prompt.last_text().to_string();
            let ids = self.encode_plain(&text)?;
            let mut completion_ids = self.tokenizer.encode(completion, false)?;
            completion_ids.extend(self.tokenizer.eos_id());
            return Ok((RenderedPrompt { text, ids, messages: None }, completion_ids));
        };
        let text = self.render_open(&messages)?;
        messages.push(json!({"role": "assistant", "content": completion}));
        let whole = self.render_messages(&messages, false)?;
        let Some(rest) = whole.strip_prefix(text.as_str()) else {
            let template = self.template.as_ref().map_or_else(String::new, |t| t.source().to_string());
            return Err(TextError::PromptNotPrefix { template });
        };
        let completion_ids = self.tokenizer.encode(rest, false)?;
        let ids = self.tokenizer.encode(&text, false)?;
        messages.pop();
        Ok((RenderedPrompt { text, ids, messages: Some(messages) }, completion_ids))
    }

    /// The messages to render, or None for a plain prompt.
    pub(super) fn conversation(&self, prompt: &Prompt) -> Option<Vec<Value>> {
        let mut messages = match prompt {
            Prompt::Messages(messages) => messages.clone(),
            Prompt::Text(text) if self.text_as_user || self.system_prompt.is_some() => {
                vec![json!({"role": "user", "content": text})]
            }
            Prompt::Text(_) => return None,
        };
        if let Some(system) = &self.system_prompt
            && !messages.first().is_some_and(|m| matches!(role(m), "system" | "developer"))
        {
            messages.insert(0, json!({"role": "system", "content": system}));
        }
        Some(messages)
    }

    /// Renders a conversation so that the model goes on from its end.
    fn render_open(&self, messages: &[Value]) -> Result<String, TextError> {
        let Some(last) = messages.last().filter(|m| role(m) == "assistant") else {
            return self.render_messages(messages, true);
        };
        let mut text = self.render_messages(messages, false)?;
        let content = last.get("content").and_then(Value::as_str).unwrap_or_default();
        // Templates often trim the content; the turn is cut open right after the text that is there.
        for candidate in [content, content.trim_end(), content.trim()] {
            if let Some(at) = text.rfind(candidate) {
                text.truncate(at + candidate.len());
                break;
            }
        }
        Ok(text)
    }

    pub(super) fn render_messages(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoChatTemplate)?;
        let options = RenderOptions { add_generation_prompt, tools: None, extra: self.template_kwargs.clone() };
        template.render(messages, self.tokenizer.special_tokens(), &options)
    }

    /// Plain text with the tokenizer's own special tokens, less an EOS that it put at the end.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.tokenizer.encode(text, true)?;
        if self.tokenizer.eos_id().is_some_and(|eos| ids.last() == Some(&eos)) {
            let own = self.tokenizer.encode(text, false)?;
            if own.last() != ids.last() {
                ids.pop();
            }
        }
        Ok(ids)
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}
