//! A loopback service that answers chat completions as a closure says, and keeps what it was asked.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several test files; a test that cannot be set up has failed"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What the service does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A chat completion of this text.
    Says(String),
    /// Any answer: status, further head lines, body.
    Answer(u16, &'static str, String),
    /// The connection ends without a word.
    Close,
    /// The connection ends in the middle of the answer.
    Cut,
    /// A chat completion after a while.
    Late(Duration, String),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

impl Asked {
    /// The text of the one message.
    pub fn message(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap()
    }
}

/// Runs until the end of the process; each test has its own.
pub struct JudgeServer {
    pub base_url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl JudgeServer {
    /// `answer` gets the request and how many came before it.
    pub fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                std::thread::spawn(move || serve(&stream.unwrap(), &asked, &*answer));
            }
        });
        Self { base_url, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// One connection, one request: the answer closes it.
fn serve(stream: &TcpStream, asked: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked, usize) -> Reply) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let header = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let request = Asked {
        path: head.split(' ').nth(1).unwrap().to_owned(),
        authorization: header("authorization"),
        body: serde_json::from_slice(&body).unwrap(),
    };
    let before = {
        let mut asked = asked.lock().unwrap();
        asked.push(request.clone());
        asked.len() - 1
    };
    match answer(&request, before) {
        Reply::Says(text) => write(stream, 200, "", &completion(&text)),
        Reply::Answer(status, head, body) => write(stream, status, head, &body),
        Reply::Close => {}
        Reply::Cut => {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"choices\":");
        }
        Reply::Late(pause, text) => {
            std::thread::sleep(pause);
            write(stream, 200, "", &completion(&text));
        }
    }
}

fn completion(text: &str) -> String {
    json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": text } }] }).to_string()
}

fn write(mut stream: &TcpStream, status: u16, head: &str, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{head}content-length: {}\r\n\r\n", body.len());
    // A client that has gone away is no failure of the server.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
}
