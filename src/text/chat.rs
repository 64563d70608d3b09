//! Chat templates: a list of messages to the text a model was trained on, byte for byte as transformers renders it.
//!
//! Templates are Jinja; minijinja runs them. What transformers does differently from plain minijinja is set up in
//! [`environment`]. A template comes from outside, so a render has an instruction limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value as JinjaValue};
use regex::Regex;
use serde_json::{Map, Value};

use super::error::{TextError, excerpt};
use super::python;
use super::tokenizer::{SpecialTokens, read_object};
use crate::io::read_text;

/// Instructions that one render may run: thousands of messages, but not an endless loop.
const FUEL: u64 = 5_000_000;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Where a template was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// The text of the `chat_template` setting itself.
    Setting,
    File(PathBuf),
}

impl std::fmt::Display for TemplateSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setting => f.write_str("in the setting `chat_template`"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What a render gets besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with the head of an assistant turn, so that the model answers.
    pub add_generation_prompt: bool,
    /// JSON schemas of tools, as a list.
    pub tools: Option<Value>,
    /// Further variables (`enable_thinking`, say); they win over the special tokens.
    pub extra: Map<String, Value>,
}

/// A compiled chat template. Cloning is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: TemplateSource,
    has_tool_use: bool,
    text: Arc<str>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// The chat template of a model folder, or None where it has none.
    ///
    /// `explicit` (the setting) wins: the path of a Jinja file, or a template's text if it has `{{` or `{%`. Then, in
    /// this order: `chat_template.jinja`, `chat_template.json`, `chat_template` in `tokenizer_config.json` (a string, or
    /// a list of `{name, template}` with `default` and maybe `tool_use`).
    pub fn load(folder: &Path, explicit: Option<&str>) -> Result<Option<Self>, TextError> {
        if let Some(setting) = explicit {
            if setting.contains("{{") || setting.contains("{%") {
                return Self::from_text(setting).map(Some);
            }
            let path = PathBuf::from(setting);
            return Self::compile(single(read_text(&path)?), TemplateSource::File(path)).map(Some);
        }
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            return Self::compile(single(read_text(&path)?), TemplateSource::File(path)).map(Some);
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(file);
            let Some(config) = read_object(&path)? else { continue };
            let named = match config.get("chat_template") {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => single(text.clone()),
                Some(list) => named_templates(list).ok_or_else(|| TextError::BadField {
                    path: path.clone(),
                    key: "chat_template".to_string(),
                    expected: "a string, or a list of {name, template} with a `default`",
                    got: excerpt(&list.to_string()),
                })?,
            };
            return Self::compile(named, TemplateSource::File(path)).map(Some);
        }
        Ok(None)
    }

    /// A template from its text.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        Self::compile(single(text.to_string()), TemplateSource::Setting)
    }

    fn compile(templates: BTreeMap<String, String>, source: TemplateSource) -> Result<Self, TextError> {
        let mut environment = environment();
        let has_tool_use = templates.contains_key(TOOL_USE);
        let text: Arc<str> = templates.get(DEFAULT).map(String::as_str).unwrap_or_default().into();
        for (name, template) in templates {
            environment.add_template_owned(name, without_generation_tags(&template)).map_err(|error| {
                TextError::TemplateSyntax { template: source.to_string(), line: error.line(), reason: reason(&error) }
            })?;
        }
        Ok(Self { environment: Arc::new(environment), source, has_tool_use, text })
    }

    /// Where the template was found.
    #[must_use]
    pub fn source(&self) -> &TemplateSource {
        &self.source
    }

    /// The template as written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Renders messages (`{role, content, ...}` objects).
    ///
    /// # Errors
    /// The template rejects the messages (`raise_exception`), fails, or runs too long.
    pub fn render(
        &self,
        messages: &[Value],
        special: &SpecialTokens,
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        let name = if options.tools.is_some() && self.has_tool_use { TOOL_USE } else { DEFAULT };
        let mut context: BTreeMap<&str, JinjaValue> = BTreeMap::new();
        // As in transformers: `tools` and `documents` are always defined, special tokens only where they exist.
        context.insert("documents", JinjaValue::from(()));
        for (name, token) in special.iter() {
            context.insert(name, JinjaValue::from(token));
        }
        for (name, value) in &options.extra {
            context.insert(name, JinjaValue::from(Serde(value)));
        }
        context.insert("messages", JinjaValue::from(Serde(messages)));
        context.insert("tools", options.tools.as_ref().map_or(JinjaValue::from(()), |t| JinjaValue::from(Serde(t))));
        context.insert("add_generation_prompt", JinjaValue::from(options.add_generation_prompt));
        let template = self.environment.get_template(name).map_err(|error| self.render_error(&error))?;
        template.render(JinjaValue::from_pairs(context)).map_err(|error| self.render_error(&error))
    }

    fn render_error(&self, error: &Error) -> TextError {
        let template = self.source.to_string();
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(current) = cause {
            if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
                return TextError::TemplateRaised { template, reason: message.clone() };
            }
            cause = current.source();
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return TextError::TemplateFuel { template, fuel: FUEL };
        }
        TextError::TemplateRender { template, line: error.line(), reason: reason(error) }
    }
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn reason(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
}

fn single(text: String) -> BTreeMap<String, String> {
    BTreeMap::from([(DEFAULT.to_string(), text)])
}

fn named_templates(list: &Value) -> Option<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    for entry in list.as_array()? {
        templates.insert(entry.get("name")?.as_str()?.to_string(), entry.get("template")?.as_str()?.to_string());
    }
    templates.contains_key(DEFAULT).then_some(templates)
}

/// Replaces `{% generation %}` blocks, with which transformers marks assistant tokens, by blocks that always run.
fn without_generation_tags(template: &str) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let Some(tag) = TAG.as_ref() else { return template.to_string() };
    tag.replace_all(template, |found: &regex::Captures<'_>| {
        let body = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {body} {}%}}", &found[1], &found[3])
    })
    .into_owned()
}

/// minijinja with the settings under which transformers runs Jinja.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    // The delimiters are the defaults, so that building cannot fail.
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|out, _, value| {
        let mut text = String::new();
        python::write_str(&mut text, value)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_filter("tojson", |value: JinjaValue, indent: Option<JinjaValue>, kwargs: Kwargs| {
        python::tojson(&value, indent, &kwargs)
    });
    environment.add_filter("string", |value: JinjaValue| -> Result<String, Error> {
        let mut text = String::new();
        python::write_str(&mut text, &value)?;
        Ok(text)
    });
    environment.add_function("raise_exception", |message: String| -> Result<JinjaValue, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    environment
}
