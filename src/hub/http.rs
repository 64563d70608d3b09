//! HTTP with the Hub: who gets the token, what is tried again, and which answer is which error.
//!
//! One client serves downloads and pushes. A request may be sent more than once, so each must mean the same the second
//! time. Redirects are followed here, because the token belongs to the Hub's own address and to no other.

use std::io::{Read, Seek, SeekFrom, Take};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, SendBody, Timeout};

use super::HubError;
use super::retry::{ATTEMPTS, pause_before, wait_asked_for};
use crate::env::HubEnv;

const MAX_REDIRECTS: usize = 8;
/// The longest JSON answer that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes of an error's text that are read.
const MAX_ERROR_BYTES: u64 = 1 << 16;

/// What a request carries.
pub(super) enum Payload {
    None,
    Bytes(Vec<u8>),
    /// A part of a file, read as it is sent.
    Part {
        path: PathBuf,
        start: u64,
        bytes: u64,
    },
}

/// One request, sent as often as it takes.
pub(super) struct Ask {
    pub method: &'static str,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub payload: Payload,
    /// What it is about, for messages: the name of a file, or words.
    pub what: String,
}

impl Ask {
    pub fn get(url: impl Into<String>, what: &str) -> Self {
        Self { method: "GET", url: url.into(), headers: Vec::new(), payload: Payload::None, what: what.into() }
    }

    pub fn post(url: impl Into<String>, json: &Value, what: &str) -> Self {
        let payload = Payload::Bytes(json.to_string().into_bytes());
        Self { method: "POST", url: url.into(), headers: Vec::new(), payload, what: what.into() }
            .header("content-type", "application/json")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An answer that is no error.
pub(super) struct Reply {
    pub response: Response<Body>,
    /// The hash under which the Hub knows the content, where it says one: of the file, not of the page that leads to it.
    pub etag: Option<String>,
}

impl Reply {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }
}

/// A connection to one repository of the Hub.
pub(super) struct Client<'a> {
    pub env: &'a HubEnv,
    pub repo: &'a str,
    /// Whether the token must be able to write, for what is said where it is not.
    pub writes: bool,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub fn new(env: &'a HubEnv, repo: &'a str, writes: bool) -> Self {
        let roots = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        let patience = Some(env.download_timeout);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")))
            .tls_config(roots)
            .timeout_connect(patience)
            .timeout_per_read(patience)
            .timeout_per_write(patience)
            .build();
        Self { env, repo, writes, agent: config.new_agent() }
    }

    /// The address of a path on the Hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.env.endpoint)
    }

    /// Sends a request until there is an answer that is no error, or until it is clear that there will be none.
    pub fn send(&self, ask: &Ask) -> Result<Reply, HubError> {
        self.send_watched(ask, &|_| {})
    }

    /// [`Client::send`]; `sent` is told of each try how many bytes of the payload have been read so far.
    pub fn send_watched(&self, ask: &Ask, sent: &dyn Fn(u64)) -> Result<Reply, HubError> {
        let mut tries = 1;
        loop {
            sent(0);
            let (error, asked) = match self.follow(ask, sent) {
                Ok(reply) if reply.status() < 400 => return Ok(reply),
                Ok(reply) => {
                    let asked = wait_asked_for(reply.response.headers());
                    (self.explain_answer(ask, reply.response, asked), asked)
                }
                Err(error) => (error, None),
            };
            let Some(pause) = pause_before(tries, asked, self.env.first_pause) else { return Err(error) };
            if tries == ATTEMPTS || !error.may_pass() {
                return Err(error);
            }
            tracing::debug!("{error}; trying again in {pause:?}");
            std::thread::sleep(pause);
            tries += 1;
        }
    }

    /// Sends a request and reads the JSON of its answer.
    pub fn json(&self, ask: &Ask) -> Result<Value, HubError> {
        Ok(self.json_page(ask)?.0)
    }

    /// As [`Client::json`], with the address of the next page where there is one.
    pub fn json_page(&self, ask: &Ask) -> Result<(Value, Option<String>), HubError> {
        let mut tries = 1;
        loop {
            let reply = self.send(ask)?;
            let next = reply.header("link").and_then(next_page);
            let mut text = Vec::new();
            let mut body = reply.response.into_body().into_reader().take(MAX_JSON_BYTES);
            if let Err(error) = body.read_to_end(&mut text) {
                let error = self.broken(ask, &error);
                match pause_before(tries, None, self.env.first_pause) {
                    Some(pause) if tries < ATTEMPTS && error.may_pass() => std::thread::sleep(pause),
                    _ => return Err(error),
                }
                tries += 1;
                continue;
            }
            let value = serde_json::from_slice(&text)
                .map_err(|error| self.protocol(&format!("{} is not JSON ({error})", ask.what)))?;
            return Ok((value, next));
        }
    }

    pub fn protocol(&self, message: &str) -> HubError {
        HubError::Protocol { repo: self.repo.into(), message: self.clean(message) }
    }

    /// One try, redirects followed.
    fn follow(&self, ask: &Ask, sent: &dyn Fn(u64)) -> Result<Reply, HubError> {
        let mut url = ask.url.clone();
        let mut etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(ask, &url, sent)?;
            let headers = response.headers();
            etag = header(headers, "x-linked-etag").map(plain_etag).or(etag);
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(target) = header(headers, "location").filter(|_| is_redirect) else {
                let etag = etag.or_else(|| header(headers, "etag").map(plain_etag));
                return Ok(Reply { response, etag });
            };
            url = redirected(&url, target)
                .ok_or_else(|| self.protocol(&format!("{} is said to have moved to {target}", ask.what)))?;
        }
        Err(self.protocol(&format!("{} is redirected in a circle", ask.what)))
    }

    fn once(&self, ask: &Ask, url: &str, sent: &dyn Fn(u64)) -> Result<Response<Body>, HubError> {
        let mut builder = ureq::http::Request::builder().method(ask.method).uri(url);
        for (name, value) in &ask.headers {
            builder = builder.header(name, value);
        }
        if let Some(token) = self.env.token.as_ref().filter(|_| origin(url) == origin(&self.env.endpoint)) {
            builder = builder.header("authorization", format!("Bearer {}", token.expose()));
        }
        let bad = |error: ureq::http::Error| self.protocol(&format!("cannot ask for {}: {error}", ask.what));
        let failed = |error: ureq::Error| self.explain_failure(ask, url, &error);
        match &ask.payload {
            Payload::None => self.agent.run(builder.body(()).map_err(bad)?).map_err(failed),
            Payload::Bytes(bytes) => self.agent.run(builder.body(bytes.as_slice()).map_err(bad)?).map_err(failed),
            Payload::Part { path, start, bytes } => {
                let unreadable = |source| HubError::Io { path: path.clone(), source };
                let mut file = std::fs::File::open(path).map_err(unreadable)?;
                file.seek(SeekFrom::Start(*start)).map_err(unreadable)?;
                let mut part = Counted { inner: file.take(*bytes), read: 0, sent };
                builder = builder.header("content-length", bytes.to_string());
                let request = builder.body(SendBody::from_reader(&mut part)).map_err(bad)?;
                self.agent.run(request).map_err(failed)
            }
        }
    }

    /// A connection that could not be made, or broke.
    fn explain_failure(&self, ask: &Ask, url: &str, error: &ureq::Error) -> HubError {
        let secs = self.env.download_timeout.as_secs();
        match error {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                HubError::Network { endpoint: origin(url), message: format!("no connection within {secs} seconds") }
            }
            ureq::Error::Timeout(_) => self.stalled(&ask.what),
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => self.stalled(&ask.what),
            other => HubError::Network { endpoint: origin(url), message: self.clean(&root_cause(other)) },
        }
    }

    fn stalled(&self, what: &str) -> HubError {
        HubError::Stalled { repo: self.repo.into(), file: what.into(), secs: self.env.download_timeout.as_secs() }
    }

    /// A body that ended before its time.
    pub fn broken(&self, ask: &Ask, error: &std::io::Error) -> HubError {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        match inner {
            Some(inner) => self.explain_failure(ask, &ask.url, inner),
            None if error.kind() == std::io::ErrorKind::TimedOut => self.stalled(&ask.what),
            None => HubError::Network { endpoint: origin(&ask.url), message: self.clean(&root_cause(error)) },
        }
    }

    /// An answer that says no.
    fn explain_answer(&self, ask: &Ask, response: Response<Body>, asked: Option<Duration>) -> HubError {
        let (repo, endpoint) = (self.repo.to_owned(), origin(&ask.url));
        let status = response.status().as_u16();
        let code = header(response.headers(), "x-error-code").unwrap_or_default().to_owned();
        let said = header(response.headers(), "x-error-message").map(str::to_owned);
        let message = self.clean(&said.unwrap_or_else(|| said_in_body(response)));
        match (code.as_str(), status) {
            (_, 401) => HubError::Unauthorized { repo, endpoint, sent: self.env.token.is_some(), message },
            ("RevisionNotFound", _) => HubError::RevisionNotFound { repo, revision: revision_in(&ask.url) },
            ("EntryNotFound", _) => HubError::MissingFile { repo, file: ask.what.clone() },
            ("GatedRepo", _) | (_, 403) => HubError::Forbidden { repo, message, writes: self.writes },
            ("RepoNotFound", _) | (_, 404) => HubError::RepoNotFound { repo, endpoint },
            (_, 429) => HubError::RateLimited { repo, endpoint, secs: asked.map(|asked| asked.as_secs()) },
            (_, 409 | 412) => HubError::Conflict { repo, message },
            _ => HubError::Server { repo, endpoint, what: ask.what.clone(), status, message },
        }
    }

    /// A text from elsewhere, on one line and without the token.
    fn clean(&self, text: &str) -> String {
        // Before the cut: half a token would not be found.
        let text = self.env.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redact(text));
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
        text.trim().to_owned()
    }
}

/// Tells how much of a payload was read.
struct Counted<'a> {
    inner: Take<std::fs::File>,
    read: u64,
    sent: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        (self.sent)(self.read);
        Ok(read)
    }
}

pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The hash in `"..."` or `W/"..."`.
fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Scheme, host and port of an address: what a token is bound to.
pub(super) fn origin(url: &str) -> String {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find(['/', '?', '#']).map_or(url.len(), |at| after_scheme + at);
    url[..end].to_ascii_lowercase()
}

/// Where a redirect leads: never from https to http, never to something that is not HTTP.
fn redirected(from: &str, target: &str) -> Option<String> {
    let url = match target {
        path if path.starts_with("//") => format!("{}:{path}", from.split(':').next()?),
        path if path.starts_with('/') => format!("{}{path}", origin(from)),
        absolute => absolute.to_owned(),
    };
    let is_allowed = url.starts_with("https://") || (url.starts_with("http://") && !from.starts_with("https://"));
    is_allowed.then_some(url)
}

/// The address in `<...>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(next.split('<').nth(1)?.split('>').next()?.to_owned())
}

/// The revision that an address of the Hub names.
fn revision_in(url: &str) -> String {
    let path = url.split('?').next().unwrap_or_default();
    let markers = ["/revision/", "/tree/", "/resolve/", "/commit/", "/preupload/"];
    let found = markers.iter().find_map(|marker| path.split_once(marker)).map_or("main", |(_, rest)| rest);
    let encoded = found.split('/').next().unwrap_or_default();
    percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned()
}

/// What the body of an error says: the `error` of a JSON object, else its start.
fn said_in_body(response: Response<Body>) -> String {
    let mut text = Vec::new();
    // An error without a text is an error all the same.
    let _ = response.into_body().into_reader().take(MAX_ERROR_BYTES).read_to_end(&mut text);
    let said = serde_json::from_slice::<Value>(&text).ok().and_then(|value| {
        let said = value.get("error").or_else(|| value.get("message"))?;
        Some(said.as_str().map_or_else(|| said.to_string(), str::to_owned))
    });
    said.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&text);
        if text.trim_start().starts_with('<') { String::new() } else { text.into_owned() }
    })
}

/// The innermost cause: "Connection refused" rather than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    text.strip_prefix("io: ").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_bound_to_scheme_host_and_port() {
        assert_eq!(origin("https://Hub.co/a/b?c"), "https://hub.co");
        for other in ["http://hub.co/", "https://hub.co.evil/", "https://hub.co:8/", "https://hub.co@evil/"] {
            assert_ne!(origin(other), origin("https://hub.co"), "{other}");
        }
    }

    #[test]
    fn a_token_at_the_cut_is_not_shown_in_part() {
        let env = HubEnv::from_lookup(&|name| (name == "HF_TOKEN").then(|| "hf_canary".into()));
        let shown = Client::new(&env, "org/name", false).clean(&("x".repeat(496) + "hf_canary"));
        assert!(shown.ends_with("x[tok"), "{shown}");
    }

    #[test]
    fn redirects_stay_with_http_and_never_lose_tls() {
        let from = "https://hub.co/a?b";
        assert_eq!(redirected(from, "/c").as_deref(), Some("https://hub.co/c"));
        assert_eq!(redirected(from, "//cdn.co/c").as_deref(), Some("https://cdn.co/c"));
        assert_eq!(redirected(from, "https://cdn.co/c").as_deref(), Some("https://cdn.co/c"));
        for refused in ["http://hub.co/c", "file:///etc/passwd", "c"] {
            assert_eq!(redirected(from, refused), None, "{refused}");
        }
        assert_eq!(redirected("http://hub/a", "http://cdn/c").as_deref(), Some("http://cdn/c"));
    }

    #[test]
    fn links_and_revisions_are_read_from_their_places() {
        let link = "<https://h/a?cursor=x>; rel=\"next\", <https://h/b>; rel=\"last\"";
        assert_eq!(next_page(link).as_deref(), Some("https://h/a?cursor=x"));
        assert_eq!(next_page("<https://h/b>; rel=\"last\""), None);
        assert_eq!(revision_in("https://h/api/models/a/b/revision/feature%2Fx"), "feature/x");
        assert_eq!(revision_in("https://h/api/models/a/b/tree/v1?recursive=true"), "v1");
        assert_eq!(revision_in("https://h/api/models/a/b"), "main");
    }
}
