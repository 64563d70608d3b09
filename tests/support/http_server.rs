//! A loopback HTTP server that plays the Hub: fixed answers by path, every request recorded.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One answer.
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

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub authorization: Option<String>,
}

/// Runs until the end of the process; each test has its own.
pub struct Server {
    pub endpoint: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (shared_answers, shared_seen) = (answers.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, seen) = (shared_answers.clone(), shared_seen.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), &answers, &seen));
            }
        });
        Self { endpoint, answers, seen }
    }

    /// Answers `path` (the part before `?`); `"GET /x"` or `"HEAD /x"` answer one method only.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

/// One connection, one request: the answer closes it.
fn serve(stream: &TcpStream, answers: &Mutex<HashMap<String, Answer>>, seen: &Mutex<Vec<Seen>>) {
    let mut lines = BufReader::new(stream).lines();
    let Some(Ok(request)) = lines.next() else { return };
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let authorization = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
    });
    seen.lock().unwrap().push(Seen { path: path.clone(), authorization });
    let answer = {
        let answers = answers.lock().unwrap();
        answers.get(&format!("{method} {path}")).or_else(|| answers.get(&path)).cloned()
    };
    let answer = answer.unwrap_or_else(|| Answer::new(404, "nothing here"));
    let own = format!("HTTP/1.1 {} Answer\r\nconnection: close\r\n", answer.status);
    let headers = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let text = [own].into_iter().chain(headers).collect::<String>();
    let text = text + &format!("content-length: {}\r\n\r\n", answer.body.len());
    let mut stream = stream;
    // A client that has gone away is no failure of the server.
    let _ = stream.write_all(text.as_bytes());
    if method != "HEAD" {
        let _ = stream.write_all(&answer.body);
    }
}
