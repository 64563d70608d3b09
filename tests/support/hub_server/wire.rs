//! HTTP/1.1 as far as the server needs it: one request a connection, with or without chunks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A request, its body still to be read.
pub struct Request {
    pub method: String,
    /// Without the query, as it was sent.
    pub path: String,
    pub query: String,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
}

impl Request {
    /// Reads the head of a request; `None` where the client has gone.
    pub fn read(stream: TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Some(Self { method, path: path.to_owned(), query: query.to_owned(), headers, reader })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a name in the query.
    pub fn asked(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// The body; at most `limit` bytes of it.
    pub fn body(&mut self, limit: u64) -> Option<Vec<u8>> {
        if self.header("expect").is_some() {
            self.reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let mut body = Vec::new();
        if self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line).ok()?;
                let size = u64::from_str_radix(line.trim(), 16).ok()?;
                (&mut self.reader).take(size + 2).read_to_end(&mut body).ok()?;
                body.truncate(body.len() - 2);
                if size == 0 || body.len() as u64 > limit {
                    return Some(body);
                }
            }
        }
        let length = self.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0u64);
        (&mut self.reader).take(length.min(limit)).read_to_end(&mut body).ok()?;
        Some(body)
    }

    /// The stream, for the answer.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub fn json(value: &serde_json::Value) -> Self {
        Self::new(200, value.to_string()).header("content-type", "application/json")
    }

    /// An error as the Hub words it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({ "error": message }).to_string();
        Self::new(status, body).header("x-error-code", code).header("x-error-message", message)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends it; the body only up to `limit`, as where a connection breaks.
    pub fn send(&self, stream: &mut TcpStream, is_head: bool, limit: usize) {
        let head = format!("HTTP/1.1 {} Answer\r\nconnection: close\r\n", self.status);
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let length = format!("content-length: {}\r\n\r\n", self.body.len());
        let text: String = [head].into_iter().chain(headers).chain([length]).collect();
        // A client that has gone away is no failure of the server.
        let _ = stream.write_all(text.as_bytes());
        if !is_head {
            let _ = stream.write_all(&self.body[..limit.min(self.body.len())]);
        }
        let _ = stream.flush();
    }
}
