//! A program that is kept running: its process, its pipes, its end.
//!
//! What the lines mean is the business of the reward. Writing to the program, reading from it and reading what it says
//! on stderr have a thread each, so that a full pipe stops neither side.
//!
//! The program leads a process group of its own: Ctrl-C in a terminal does not reach it, and what it has started ends
//! with it. Beside it a shell waits for this process to go away and then kills the group; so nothing is left behind
//! even where this process is killed and can do nothing more.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::env;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// The most bytes of a line that are kept; the rest of it is read and dropped.
const MAX_LINE: usize = 1 << 16;
/// Lines that wait to be looked at; a program that writes more has to wait.
const MAX_WAITING: usize = 1024;
/// How long a program may go on after the end of its input, before it is killed.
const GRACE: Duration = Duration::from_secs(1);
/// How long the last words and the exit status of a program that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// Kills the process group `$1` once its own input ends, which is when the process that holds the other end is gone.
const WATCH: &str = "read -r _; kill -s KILL -- \"-$1\"";

/// A running program. Dropping it ends it: it may finish by itself for a moment, then it is killed with all that it has
/// started.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// The shell that ends the group; `None` where there is none on this machine.
    watch: Option<Child>,
    /// To the writing thread; `None` once the program's input has ended.
    requests: Option<Sender<Vec<u8>>>,
    /// From the reading thread.
    lines: Receiver<String>,
    /// The last line on stderr.
    last_words: Arc<Mutex<String>>,
    /// Never gets anything; ends with stderr.
    stderr_end: Receiver<()>,
    grace: Duration,
}

/// Why there is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoLine {
    /// The program has ended, or closed its output.
    Ended,
    /// There is none yet.
    Late,
}

/// Where a program lies that is called by a path or by a name that is looked for in `PATH`.
///
/// # Errors
/// There is no such file, or it may not be executed.
pub(super) fn find(program: &str) -> io::Result<PathBuf> {
    if program.contains('/') {
        let path = std::path::absolute(program)?;
        return require_executable(&path).map(|()| path);
    }
    let mut found = Err(io::Error::from(io::ErrorKind::NotFound));
    for folder in env::search_path() {
        let path = folder.join(program);
        match require_executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found = Err(error),
            Err(_) => {}
        }
    }
    found
}

fn require_executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let is_executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    if is_executable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

impl Program {
    /// Starts `command`, a program with its arguments. What it says on stderr is logged under `name`.
    ///
    /// # Errors
    /// What the operating system says where it cannot be started.
    pub fn start(name: &str, command: &[String]) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut to_start = Command::new(find(program)?);
        to_start.args(arguments).process_group(0);
        let mut child = to_start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (requests, to_write) = channel::<Vec<u8>>();
        let (found, lines) = sync_channel(MAX_WAITING);
        let (is_open, stderr_end) = channel();
        let mut running = Self {
            watch: watch(child.id()),
            child,
            requests: Some(requests),
            lines,
            last_words: Arc::default(),
            stderr_end,
            grace: GRACE,
        };
        // Dropped on an error, `running` ends what was started.
        let (name, last_words) = (name.to_owned(), Arc::clone(&running.last_words));
        let threads = [
            spawn("to reward", move || stdin.map_or((), |stdin| write_all(stdin, &to_write))),
            spawn("from reward", move || stdout.map_or((), |stdout| forward(stdout, &found))),
            spawn("stderr of reward", move || {
                let _is_open: Sender<()> = is_open;
                if let Some(stderr) = stderr {
                    log(stderr, &name, &last_words);
                }
            }),
        ];
        if let Some(error) = threads.into_iter().find_map(Result::err) {
            running.grace = Duration::ZERO;
            return Err(error);
        }
        Ok(running)
    }

    /// Hands bytes to the program; returns at once. Where the program has ended, [`Program::line`] tells.
    pub fn send(&self, bytes: Vec<u8>) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(bytes);
        }
    }

    /// The next line that the program writes, waited for until `deadline`.
    pub fn line(&self, deadline: Instant) -> Result<String, NoLine> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Disconnected => NoLine::Ended,
            RecvTimeoutError::Timeout => NoLine::Late,
        })
    }

    /// Ends the program at once.
    pub fn kill(mut self) {
        self.grace = Duration::ZERO;
    }

    /// How a program that gives no more lines came to its end, and the last that it said.
    pub fn last_words(mut self) -> (String, String) {
        self.grace = Duration::ZERO;
        let _ = self.stderr_end.recv_timeout(LAST_WORDS);
        let until = Instant::now() + LAST_WORDS;
        let mut has_ended = self.has_ended();
        while !has_ended && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
            has_ended = self.has_ended();
        }
        let ending = match self.end_group() {
            Ok(status) if has_ended => format!("ended ({status})"),
            _ => "closed its standard output".to_owned(),
        };
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (ending, last_words)
    }

    /// Whether the program has ended. Its status is left to be taken: until then its number is no other's.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), options).is_ok_and(|status| status.is_some())
    }

    /// Kills the group and takes the status of its leader, in this order: then the leader's number may be given to
    /// another.
    fn end_group(&mut self) -> io::Result<ExitStatus> {
        if let Some(mut watch) = self.watch.take() {
            drop(watch.stdin.take());
            let _ = watch.wait();
        }
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.requests = None;
        let deadline = Instant::now() + self.grace;
        // What it still writes is read, so that it can get to its end.
        while Instant::now() < deadline && self.line(deadline).is_ok() {}
        let _ = self.end_group();
    }
}

/// Starts the shell that kills the group of `leader` once this process, or its handle, is gone.
fn watch(leader: u32) -> Option<Child> {
    let mut shell = Command::new("sh");
    shell.args(["-c", WATCH, "sh", &leader.to_string()]).process_group(0);
    let started = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.inspect_err(|error| tracing::warn!("no shell watches over the reward's program: {error}")).ok()
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Writes what comes until nothing more does, or the program reads no more.
fn write_all(mut stdin: impl Write, batches: &Receiver<Vec<u8>>) {
    for bytes in batches {
        if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Hands on each line until the output ends, or nobody listens.
fn forward(stdout: impl io::Read, lines: &SyncSender<String>) {
    let mut reader = BufReader::new(stdout);
    while let Some(line) = next_line(&mut reader) {
        if lines.send(line).is_err() {
            return;
        }
    }
}

fn log(stderr: impl io::Read, name: &str, last_words: &Mutex<String>) {
    let mut reader = BufReader::new(stderr);
    while let Some(line) = next_line(&mut reader) {
        tracing::info!("{name}: {line}");
        if !line.trim().is_empty() {
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
        }
    }
}

/// The next line without its end, cut to [`MAX_LINE`] bytes; `None` where there is none.
fn next_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let mut is_any = false;
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => &[],
        };
        if buffer.is_empty() {
            return is_any.then(|| String::from_utf8_lossy(&line).into_owned());
        }
        is_any = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let content = &buffer[..end.unwrap_or(buffer.len())];
        line.extend_from_slice(&content[..content.len().min(MAX_LINE - line.len())]);
        let taken = content.len() + usize::from(end.is_some());
        reader.consume(taken);
        if end.is_some() {
            return Some(String::from_utf8_lossy(&line).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::start("test", &["sh", "-c", script].map(str::to_owned)).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Whether a process of this number is there and no zombie.
    fn is_alive(process: &str) -> bool {
        fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// More than any pipe holds goes both ways at once.
    #[test]
    fn full_pipes_stop_nobody() {
        let program = shell("cat; echo end");
        let batch: Vec<String> = (0..40_000).map(|i| format!("line {i} of many\n")).collect();
        program.send(batch.concat().into_bytes());
        for i in 0..40_000 {
            assert_eq!(program.line(soon()).unwrap(), format!("line {i} of many"));
        }
    }

    #[test]
    fn lines_are_cut_and_need_no_end() {
        let long = "x".repeat(3 * MAX_LINE);
        let mut text = long.as_bytes();
        assert_eq!(next_line(&mut text).unwrap().len(), MAX_LINE);
        assert_eq!(next_line(&mut text), None);
        let mut text: &[u8] = b"a\n\nb\xff";
        assert_eq!(
            [(); 4].map(|()| next_line(&mut text)),
            [Some("a"), Some(""), Some("b\u{fffd}"), None].map(|l| l.map(str::to_owned))
        );
    }

    /// The program, and what it has started, are gone when the handle is; neither is asked twice.
    #[test]
    fn nothing_is_left_behind() {
        for script in
            ["sleep 600 & echo $$ $!; wait", "trap '' TERM HUP; sleep 600 & echo $$ $!; while :; do sleep 1; done"]
        {
            let program = shell(script);
            let line = program.line(soon()).unwrap();
            let (leader, started) = line.split_once(' ').unwrap();
            assert!(is_alive(leader) && is_alive(started));
            let asked = Instant::now();
            drop(program);
            assert!(asked.elapsed() < GRACE + Duration::from_secs(4));
            assert!(!is_alive(leader), "{line}");
            // It was killed, and is gone as soon as the system has seen to that.
            while is_alive(started) {
                assert!(asked.elapsed() < Duration::from_secs(20), "{line}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_program_that_reads_to_the_end_may_finish() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        drop(shell(&format!("cat; sleep 0.2; echo done > '{}'", file.display())));
        assert_eq!(fs::read_to_string(file).unwrap(), "done\n");
    }

    /// Until the group is killed, the number of a program that has ended is no other's.
    #[test]
    fn looking_whether_a_program_has_ended_takes_no_status() {
        let program = shell("exit 3");
        let until = soon();
        while !program.has_ended() {
            assert!(Instant::now() < until);
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.child.id())).unwrap();
        assert!(stat.contains(") Z "), "{stat}");
    }

    #[test]
    fn the_last_words_are_kept() {
        let program = shell("echo first >&2; echo no such thing >&2; exit 3");
        assert_eq!(program.line(soon()), Err(NoLine::Ended));
        assert_eq!(program.last_words(), ("ended (exit status: 3)".to_owned(), "no such thing".to_owned()));
        let program = shell("exec >&-; sleep 600");
        assert_eq!(program.line(soon()), Err(NoLine::Ended));
        assert_eq!(program.last_words().0, "closed its standard output");
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert!(find("sh").unwrap().is_absolute());
        assert_eq!(find("no-such-program").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(find("./no/such").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(find("./Cargo.toml").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(find("./src").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
