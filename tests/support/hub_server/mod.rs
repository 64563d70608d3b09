//! A Hub on the loopback device, in memory: repositories, branches, commits, large files, and failures on demand.
//!
//! It speaks what the official clients speak without Xet: pages and lists of repositories, `resolve` with redirects to a
//! storage of another origin, creating repositories and branches, `preupload`, LFS `batch` with the transfers `basic` and
//! `multipart`, `verify`, and commits as NDJSON. A commit is made whole or not at all.

#![allow(dead_code, clippy::unwrap_used, reason = "shared by several programs; a server that fails fails its test")]

mod routes;
pub mod wire;

use std::collections::{BTreeMap, HashMap};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use wire::{Answer, Request};

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Failure {
    /// This answer, and nothing is done.
    Answer(Answer),
    /// The connection breaks after so many bytes of the request's body.
    CutRequest(u64),
    /// The connection breaks after so many bytes of the answer's body.
    CutAnswer(usize),
    /// Everything is done, and the answer gets lost.
    LoseAnswer,
    /// One byte of the answer's body is another.
    WrongByte(usize),
    /// The answer's body is this one, of whatever length.
    Body(Vec<u8>),
    /// Nothing comes for this long.
    Stall(Duration),
}

/// A failure, of the next `times` requests of `method` whose path contains `path`.
struct Fault {
    method: &'static str,
    path: String,
    times: usize,
    failure: Failure,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// Bytes of its body that were read.
    pub bytes: usize,
    /// Whether it came to the storage instead of the Hub.
    pub is_storage: bool,
}

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// In git itself.
    Git(Vec<u8>),
    /// By its SHA-256 in the storage, with its size.
    Large(String, usize),
}

pub type Files = BTreeMap<String, Stored>;

#[derive(Debug, Default, Clone)]
pub struct Repo {
    pub is_private: bool,
    pub is_gated: bool,
    pub gitignore: Vec<String>,
    /// The commits of each branch, the newest last.
    pub branches: BTreeMap<String, Vec<String>>,
    commits: HashMap<String, Files>,
}

#[derive(Default)]
struct State {
    /// By `models/org/name`.
    repos: HashMap<String, Repo>,
    large: HashMap<String, Vec<u8>>,
    parts: HashMap<(String, usize), Vec<u8>>,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    settings: Settings,
    /// The address of the Hub.
    endpoint: String,
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The one token that is known; with `None` everyone may do everything.
    pub token: Option<String>,
    /// The account of that token.
    pub user: String,
    /// From this size on a file goes to the storage.
    pub large_from: usize,
    /// Larger files than this are uploaded in parts of this size.
    pub part_bytes: usize,
    /// Files of a page of a listing.
    pub page: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { token: None, user: "me".into(), large_from: 1000, part_bytes: 1 << 30, page: 1000 }
    }
}

/// Runs until the end of the process; each test has its own.
pub struct Hub {
    pub endpoint: String,
    storage: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(settings: Settings) -> Self {
        Self::start_at("127.0.0.1:0", settings)
    }

    pub fn start_at(address: &str, settings: Settings) -> Self {
        let (hub, storage) = (TcpListener::bind(address).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, storage_address) = (address(&hub), address(&storage));
        let state = State { settings, endpoint: endpoint.clone(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (state, storage) = (state.clone(), storage_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, storage) = (state.clone(), storage.clone());
                    std::thread::spawn(move || serve(stream.unwrap(), &state, &storage, is_storage));
                }
            });
        }
        Self { endpoint, storage: storage_address, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes the next `times` requests go wrong.
    pub fn fail(&self, method: &'static str, path: &str, times: usize, failure: Failure) {
        self.state().faults.push(Fault { method, path: path.to_owned(), times, failure });
    }

    /// Failures that were asked for and have not come about.
    pub fn faults_left(&self) -> usize {
        self.state().faults.iter().map(|fault| fault.times).sum()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    pub fn forget(&self) {
        self.state().seen.clear();
    }

    /// Commits files to a branch of `models/org/name`, which comes into being with them; returns the commit.
    pub fn commit(&self, repo: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let mut state = self.state();
        let mut content = state.repos.entry(repo.to_owned()).or_default().head(branch).cloned().unwrap_or_default();
        for (name, body) in files {
            let stored = state.store(body);
            content.insert((*name).to_owned(), stored);
        }
        state.repos.get_mut(repo).unwrap().push(branch, content)
    }

    /// Changes a repository.
    pub fn change(&self, repo: &str, change: impl FnOnce(&mut Repo)) {
        change(self.state().repos.get_mut(repo).unwrap());
    }

    pub fn repo(&self, repo: &str) -> Option<Repo> {
        self.state().repos.get(repo).cloned()
    }

    /// The files of a branch with their bytes.
    pub fn files(&self, repo: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let files = state.repos.get(repo).and_then(|repo| repo.head(branch)).cloned().unwrap_or_default();
        files.into_iter().map(|(name, stored)| (name, state.bytes(&stored))).collect()
    }

    /// Commits of a branch.
    pub fn num_commits(&self, repo: &str, branch: &str) -> usize {
        self.repo(repo).and_then(|repo| Some(repo.branches.get(branch)?.len())).unwrap_or(0)
    }

    /// Whether the storage has a content of this size.
    pub fn has_large(&self, bytes: usize) -> bool {
        self.state().large.values().any(|content| content.len() == bytes)
    }
}

impl Repo {
    pub fn head(&self, branch: &str) -> Option<&Files> {
        self.commits.get(self.branches.get(branch)?.last()?)
    }

    /// The commit that a branch or a commit's own name stands for.
    fn resolve(&self, revision: &str) -> Option<(String, &Files)> {
        let commit = self.branches.get(revision).and_then(|commits| commits.last().cloned());
        let commit = commit.unwrap_or_else(|| revision.to_owned());
        Some((commit.clone(), self.commits.get(&commit)?))
    }

    fn push(&mut self, branch: &str, files: Files) -> String {
        let commits = self.branches.entry(branch.to_owned()).or_default();
        let commit = hex(&Sha1::digest(format!("{branch} {} {commits:?} {files:?}", self.commits.len())));
        commits.push(commit.clone());
        self.commits.insert(commit.clone(), files);
        commit
    }
}

impl State {
    fn store(&mut self, body: &[u8]) -> Stored {
        if body.len() < self.settings.large_from {
            return Stored::Git(body.to_vec());
        }
        let oid = sha256(body);
        self.large.insert(oid.clone(), body.to_vec());
        Stored::Large(oid, body.len())
    }

    fn bytes(&self, stored: &Stored) -> Vec<u8> {
        match stored {
            Stored::Git(bytes) => bytes.clone(),
            Stored::Large(oid, _) => self.large[oid].clone(),
        }
    }

    /// The failure of this request, if one is due.
    fn fault(&mut self, request: &Request) -> Option<Failure> {
        let fits = |fault: &&mut Fault| {
            fault.times > 0 && fault.method == request.method && request.path.contains(&fault.path)
        };
        let fault = self.faults.iter_mut().find(fits)?;
        fault.times -= 1;
        Some(fault.failure.clone())
    }
}

pub fn sha256(body: &[u8]) -> String {
    hex(&Sha256::digest(body))
}

/// The name that git gives a content.
pub fn git_sha1(body: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", body.len())).chain_update(body).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// One connection, one request: the answer closes it.
fn serve(stream: TcpStream, state: &Mutex<State>, storage: &str, is_storage: bool) {
    let Some(mut request) = Request::read(stream) else { return };
    let fault = state.lock().unwrap().fault(&request);
    let limit = if let Some(Failure::CutRequest(limit)) = fault { limit } else { u64::MAX };
    let body = request.body(limit);
    state.lock().unwrap().seen.push(Seen {
        method: request.method.clone(),
        path: request.path.clone(),
        authorization: request.header("authorization").map(str::to_owned),
        range: request.header("range").map(str::to_owned),
        bytes: body.as_ref().map_or(0, Vec::len),
        is_storage,
    });
    let Some(body) = body else { return };
    let mut limit = usize::MAX;
    let is_head = request.method == "HEAD";
    let answer = match fault {
        Some(Failure::CutRequest(_)) => return,
        Some(Failure::Stall(time)) => return std::thread::sleep(time),
        Some(Failure::Answer(answer)) => answer,
        other => {
            let declared: Option<usize> = request.header("content-length").and_then(|length| length.parse().ok());
            // A client that was killed: nothing may come of what it had sent so far.
            if declared.is_some_and(|declared| declared != body.len()) {
                return;
            }
            let mut answer = routes::answer(&request, &body, &mut state.lock().unwrap(), storage);
            match other {
                Some(Failure::LoseAnswer) => return,
                Some(Failure::CutAnswer(bytes)) => limit = bytes,
                Some(Failure::WrongByte(at)) => answer.body[at] ^= 1,
                Some(Failure::Body(body)) => answer.body = body,
                _ => {}
            }
            answer
        }
    };
    answer.send(request.stream(), is_head, limit);
}
