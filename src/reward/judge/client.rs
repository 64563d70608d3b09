//! Asking a chat completions service, again where it may help.
//!
//! Owns the requests: key, timeouts, which failures pass, and how long to wait in between. What is asked and what the
//! reply means is the business of the judge. The key goes into one header and nowhere else; what the service says is
//! cleared of it before anybody sees it.

use crate::env::Secret;
use crate::rng::{Stream, uniform};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// The first pause before a request is sent again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that is not asked for by the service.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that a service may ask for; one that asks for more is given up.
const LONGEST_ASKED: Duration = Duration::from_secs(600);
/// The most bytes of a reply.
const MAX_REPLY: u64 = 4 << 20;
/// The most characters of what a service says that are shown.
const SHOWN_CHARACTERS: usize = 200;

/// A chat completions service.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Address of the requests.
    pub url: String,
    model: String,
    temperature: f64,
    key: Option<Secret>,
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What the service or the connection said, the key taken out.
    pub reason: String,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// Asking again may help.
    pub may_pass: bool,
    /// The pause that the service asks for.
    pub retry_after: Option<Duration>,
}

impl Client {
    pub fn new(base_url: &str, model: &str, temperature: f64, timeout: Duration, key: Option<Secret>) -> Self {
        let tls = TlsConfig::builder()
            // Also the certificates that a company has installed on its machines.
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A moved service is told to the user: a key is not sent on to where it was not meant for.
            .max_redirects(0)
            .timeout_global(Some(timeout))
            .user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")))
            .build();
        let url = format!("{}/chat/completions", base_url.trim_end_matches('/'));
        Self { agent: config.into(), url, model: model.to_owned(), temperature, key }
    }

    /// Sends one message and returns the text of the reply.
    pub fn ask(&self, message: &str) -> Result<String, Refusal> {
        let body = json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": message }],
            "temperature": self.temperature,
        });
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        let mut response = request.send(body.to_string()).map_err(|error| self.broken(&error))?;
        let text = response.body_mut().with_config().limit(MAX_REPLY).read_to_string();
        let text = text.map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            let none = || format!("not a chat completion: {}", self.shown(&text));
            return reply(&text).ok_or_else(|| self.refusal(&none(), Some(response.status()), false));
        }
        let mut refusal =
            self.refusal(&self.explain(&response, &text), Some(response.status()), is_passing(response.status()));
        refusal.retry_after = retry_after(&response);
        if refusal.retry_after.is_some_and(|pause| pause > LONGEST_ASKED) {
            refusal.may_pass = false;
        }
        Err(refusal)
    }

    /// What the reply of a service, or its absence, says without the key.
    pub fn redact(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text))
    }

    /// What an answer that is none says.
    fn explain(&self, response: &Response<Body>, text: &str) -> String {
        let status = response.status();
        let message = serde_json::from_str::<Value>(text).ok().and_then(|answer| {
            let message =
                [answer.pointer("/error/message"), answer.get("error"), answer.get("message"), answer.get("detail")];
            message.into_iter().flatten().find_map(Value::as_str).map(str::to_owned)
        });
        let message = self.shown(message.as_deref().unwrap_or(text));
        let moved = response.headers().get("location").and_then(|location| location.to_str().ok());
        match (moved, message.is_empty()) {
            (Some(location), _) => format!("HTTP {status}, moved to {location}"),
            (None, true) => format!("HTTP {status}"),
            (None, false) => format!("HTTP {status}: {message}"),
        }
    }

    /// The beginning of a text, on one line. The key is taken out first: half of it would not be found.
    fn shown(&self, text: &str) -> String {
        let text = self.redact(text);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match words.char_indices().nth(SHOWN_CHARACTERS) {
            Some((end, _)) => format!("{}...", &words[..end]),
            None => words,
        }
    }

    fn refusal(&self, reason: &str, status: Option<StatusCode>, may_pass: bool) -> Refusal {
        Refusal { reason: self.redact(reason), status: status.map(|s| s.as_u16()), may_pass, retry_after: None }
    }

    /// No answer, or not all of one.
    fn broken(&self, error: &ureq::Error) -> Refusal {
        let may_pass = matches!(
            error,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::HostNotFound
                | ureq::Error::Protocol(_)
                | ureq::Error::BodyStalled
        );
        // A certificate that is not trusted comes as data that are not valid.
        let is_untrusted = matches!(error, ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData);
        let may_pass = may_pass && !is_untrusted;
        self.refusal(&error.to_string(), None, may_pass)
    }
}

/// The text of a chat completion; None where it is none.
fn reply(text: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let message = answer.pointer("/choices/0/message")?;
    // A model that thought until its limit has no content.
    Some(message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// Whether a request with this answer may do better later.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 425 | 429) || status.is_server_error()
}

/// The pause that the header `Retry-After` asks for, in seconds or until a date.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?.trim();
    if let Ok(secs) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(secs).ok();
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(date.duration_since(Timestamp::now()).try_into().unwrap_or(Duration::ZERO))
}

/// How long to wait before request `question` is sent again after `retries` repeats: what the service asks for, else
/// twice as long each time, half of it drawn, so that requests that failed together do not come back together.
pub(super) fn pause(question: usize, retries: usize, retry_after: Option<Duration>) -> Duration {
    let draw = uniform(u64::from(std::process::id()), Stream::Retry, [question as u64, retries as u64, 0, 0]);
    if let Some(asked) = retry_after {
        // A service that names a moment gets the requests spread over the time after it.
        return asked + FIRST_PAUSE.mul_f64(draw * 0.2);
    }
    let factor = 2f64.powi(retries.min(16) as i32);
    FIRST_PAUSE.mul_f64(factor).min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_differ_but_not_beyond_what_is_asked_for() {
        for retries in 0..12 {
            let expected = FIRST_PAUSE.mul_f64(2f64.powi(retries)).min(LONGEST_PAUSE);
            let found = pause(3, retries as usize, None);
            assert!(found <= expected && found >= expected / 2, "{retries}: {found:?}");
        }
        assert_ne!(pause(1, 0, None), pause(2, 0, None));
        let asked = Duration::from_secs(7);
        assert!((asked..=asked + FIRST_PAUSE / 5).contains(&pause(0, 9, Some(asked))));
    }

    #[test]
    fn the_text_of_a_chat_completion_is_read() {
        assert_eq!(reply(r#"{"choices":[{"message":{"role":"assistant","content":"7"}}]}"#).unwrap(), "7");
        assert_eq!(reply(r#"{"choices":[{"message":{"content":null}}]}"#).unwrap(), "");
        for text in ["", "hello", "{}", r#"{"choices":[]}"#, "[1]"] {
            assert_eq!(reply(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_at_the_cut_is_not_shown_in_part() {
        let key = Some(Secret::new("sk-canary"));
        let client = Client::new("http://localhost", "m", 0.0, Duration::from_secs(1), key);
        let shown = client.shown(&("x".repeat(SHOWN_CHARACTERS - 4) + "sk-canary"));
        assert!(shown.ends_with("x[tok..."), "{shown}");
    }
}
