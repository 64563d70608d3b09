//! Weights & Biases and Trackio, by way of their own Python packages.
//!
//! `bridge.py`, a part of this program, runs in an interpreter of the user's and is fed JSON lines. It may be slow, fail or
//! die: a thread of its own writes to it through a bounded queue, and what does not fit is counted and left out. The run
//! never waits for it but at the start, to be told that the tracker is ready, and at the end, for a limited time. What it
//! prints goes to `<tracker>.log` in the run's folder.

use super::{CompletionRecord, MetricSink, RunEnd, StepMetrics, TelemetryError};
use crate::error::{Diagnose, Exit};
use crate::io::IoError;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("bridge.py");
/// Lines that may wait for a slow tracker: hundreds of steps with their completions.
const QUEUE_LINES: usize = 8192;
/// Bytes of the end of the log that an error looks at for its last line.
const LOG_TAIL_BYTES: usize = 4096;
/// Characters of that line.
const LAST_WORDS_CHARS: usize = 200;

/// What is reported to where.
#[derive(Debug, Clone)]
pub struct BridgeSettings<'a> {
    /// `wandb` or `trackio`.
    pub tracker: &'a str,
    /// The Python interpreter: a path, or a name on the PATH.
    pub python: &'a str,
    /// The run's folder; the tracker's log and what identifies the run there go into it.
    pub folder: &'a Path,
    /// Whether the run goes on, so that the tracker's run does, too.
    pub is_resumed: bool,
    /// Whether nothing may be sent over a network.
    pub offline: bool,
    /// The project; `None` leaves it to the tracker's environment.
    pub project: Option<&'a str>,
    /// The name of the run.
    pub name: &'a str,
    /// The settings of the run.
    pub config: Value,
    /// How long to wait.
    pub limits: BridgeLimits,
}

/// How long the run waits for a tracker at most.
#[derive(Debug, Clone, Copy)]
pub struct BridgeLimits {
    /// For it to be ready. Default 180 s: signing in over a slow network takes its time.
    pub start: Duration,
    /// For it to finish at the end. Default 60 s.
    pub finish: Duration,
}

impl Default for BridgeLimits {
    fn default() -> Self {
        Self { start: Duration::from_secs(180), finish: Duration::from_secs(60) }
    }
}

/// Why a tracker could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// There is no such interpreter.
    #[error("`report_to` names \"{tracker}\", but `{python}` cannot be started: {source}")]
    NoPython { tracker: String, python: String, source: std::io::Error },
    /// The interpreter does not have the package.
    #[error("`report_to` names \"{tracker}\", but `{python}` cannot import it: {message}")]
    NoPackage { tracker: String, python: String, message: String },
    /// The tracker did not start, and said why.
    #[error("{tracker} did not start: {message}")]
    Refused { tracker: String, message: String, log: PathBuf },
    /// The tracker did not answer.
    #[error("{tracker} was not ready after {} s", limit.as_secs())]
    Silent { tracker: String, limit: Duration, log: PathBuf },
}

impl Diagnose for BridgeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoPython { tracker, .. } => format!(
                "set `python` to an interpreter that has the package {tracker}, or leave \"{tracker}\" out of `report_to`: \
                 nothing else needs Python"
            ),
            Self::NoPackage { tracker, python, .. } => format!(
                "`{python} -m pip install {tracker}`, or set `python` to an interpreter that has it, or leave \"{tracker}\" \
                 out of `report_to`"
            ),
            Self::Refused { tracker, log, .. } | Self::Silent { tracker, log, .. } if tracker == "wandb" => format!(
                "`wandb login`, or set WANDB_MODE=offline to keep the run on disk for `wandb sync`; {} has the details",
                log.display()
            ),
            Self::Refused { log, .. } | Self::Silent { log, .. } => format!("{} has the details", log.display()),
        })
    }

    fn exit(&self) -> Exit {
        match self {
            Self::NoPython { .. } | Self::NoPackage { .. } => Exit::Usage,
            Self::Refused { .. } | Self::Silent { .. } => Exit::Remote,
        }
    }
}

/// A tracker that runs beside this process.
#[derive(Debug)]
pub struct BridgeSink {
    tracker: String,
    log: PathBuf,
    child: Child,
    /// `None` once the run has ended.
    lines: Option<SyncSender<String>>,
    limits: BridgeLimits,
    num_lost: u64,
}

impl BridgeSink {
    /// Starts the tracker and waits until it is ready.
    ///
    /// # Errors
    /// [`BridgeError`] where it cannot be used: the run should not begin then.
    pub fn start(settings: &BridgeSettings<'_>) -> Result<Self, TelemetryError> {
        let BridgeSettings { tracker, python, folder, limits, .. } = *settings;
        let log = folder.join(format!("{tracker}.log"));
        let log_file = File::options().create(true).append(true).open(&log).map_err(IoError::of("open", &log))?;
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        // Ctrl-C in the terminal is for this process alone.
        command.process_group(0);
        if settings.offline {
            command.env("WANDB_MODE", "offline").env("HF_HUB_OFFLINE", "1");
            command.env_remove("TRACKIO_SPACE_ID").env_remove("TRACKIO_SERVER_URL");
        }
        let mut child = command.spawn().map_err(|source| BridgeError::NoPython {
            tracker: tracker.to_owned(),
            python: python.to_owned(),
            source,
        })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            let source = std::io::Error::from(ErrorKind::BrokenPipe);
            return Err(BridgeError::NoPython { tracker: tracker.into(), python: python.into(), source }.into());
        };
        let (lines, queue) = sync_channel(QUEUE_LINES);
        // There is room: the queue is new.
        let _ = lines.try_send(first_line(settings).to_string());
        let name = tracker.to_owned();
        thread::spawn(move || write_lines(stdin, &queue, &name));
        let answers = read_answers(stdout, tracker.to_owned());
        let mut sink = Self { tracker: tracker.to_owned(), log, child, lines: Some(lines), limits, num_lost: 0 };
        if let Err(error) = sink.await_ready(python, &answers) {
            sink.lines = None;
            // It has said why it does not go on, or nothing: there is nothing to lose.
            let _ = sink.child.kill();
            let _ = sink.child.wait();
            return Err(error.into());
        }
        Ok(sink)
    }

    fn await_ready(&self, python: &str, answers: &Receiver<Value>) -> Result<(), BridgeError> {
        let (tracker, log) = (self.tracker.clone(), self.log.clone());
        let answer = match answers.recv_timeout(self.limits.start) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                return Err(BridgeError::Silent { tracker, limit: self.limits.start, log });
            }
            Err(RecvTimeoutError::Disconnected) => {
                let message = format!("`{python}` ended without an answer{}", self.last_words());
                return Err(BridgeError::Refused { tracker, message, log });
            }
        };
        let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        if let Some(message) = text("missing") {
            return Err(BridgeError::NoPackage { tracker, python: python.to_owned(), message });
        }
        if let Some(message) = text("refused") {
            return Err(BridgeError::Refused { tracker, message, log });
        }
        let place = text("url").map_or_else(|| "is ready".to_owned(), |url| format!("shows this run at {url}"));
        tracing::info!("{tracker} {place}");
        Ok(())
    }

    /// Hands a message over; never waits.
    fn send(&mut self, message: &Value) {
        let Some(lines) = &self.lines else { return };
        match lines.try_send(message.to_string()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                if self.num_lost == 0 {
                    tracing::warn!(
                        "{} does not keep up: some of what is reported does not reach it; metrics.jsonl has everything",
                        self.tracker
                    );
                }
                self.num_lost += 1;
            }
            // The thread has said so.
            Err(TrySendError::Disconnected(_)) => self.lines = None,
        }
    }

    /// Ends the tracker's run and waits for it within the limit.
    fn close(&mut self, end: Option<&Value>) {
        let Some(lines) = self.lines.take() else { return };
        let deadline = Instant::now() + self.limits.finish;
        let mut end = end.map(|end| json!({"finish": end}).to_string());
        // A tracker that does not keep up has until the deadline to make room.
        while let Some(line) = end.take()
            && let Err(TrySendError::Full(line)) = lines.try_send(line)
            && pause_until(deadline)
        {
            end = Some(line);
        }
        drop(lines);
        let mut has_spoken = false;
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if pause_until(deadline) => {}
                _ => break None,
            }
            if !has_spoken && started.elapsed() > Duration::from_secs(1) {
                tracing::info!("waiting for {} to finish, {} s at most", self.tracker, self.limits.finish.as_secs());
                has_spoken = true;
            }
        };
        let tracker = &self.tracker;
        match status {
            Some(status) if status.success() => {}
            Some(status) => {
                tracing::warn!("{tracker} ended with {status}{}; see {}", self.last_words(), self.log.display());
            }
            None => tracing::warn!(
                "{tracker} has not finished after {} s: it goes on by itself, as process {}; see {}",
                self.limits.finish.as_secs(),
                self.child.id(),
                self.log.display()
            ),
        }
        if self.num_lost > 0 {
            tracing::warn!("{} messages did not reach {tracker}; metrics.jsonl has everything", self.num_lost);
        }
    }

    /// The last line of the log, to go behind a message.
    fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
        let last = tail.lines().map(str::trim).rfind(|line| !line.is_empty());
        let shown = |line: &str| line.chars().filter(|c| !c.is_control()).take(LAST_WORDS_CHARS).collect::<String>();
        last.map_or_else(String::new, |line| format!(": {}", shown(line)))
    }
}

impl MetricSink for BridgeSink {
    fn log(&mut self, step: u64, metrics: &StepMetrics) -> Result<(), TelemetryError> {
        self.send(&json!({"log": {"step": step, "metrics": metrics.to_json()}}));
        Ok(())
    }

    fn completion(&mut self, record: &CompletionRecord<'_>) -> Result<(), TelemetryError> {
        self.send(&json!({"completion": record.to_json()}));
        Ok(())
    }

    /// Has the completions so far shown. It does not wait for that: what makes a checkpoint durable lies in the run's folder.
    fn flush(&mut self) -> Result<(), TelemetryError> {
        self.send(&json!({"flush": null}));
        Ok(())
    }

    fn end(&mut self, end: &RunEnd<'_>) {
        let results = end.results.map(StepMetrics::to_json);
        self.close(Some(&json!({"results": results, "exit_code": end.exit_code})));
    }
}

impl Drop for BridgeSink {
    /// A run that failed: the end of the input tells the tracker.
    fn drop(&mut self) {
        self.close(None);
    }
}

fn first_line(settings: &BridgeSettings<'_>) -> Value {
    json!({
        "tracker": settings.tracker,
        "folder": settings.folder,
        "state": settings.folder.join(format!("{}.json", settings.tracker)),
        "is_resumed": settings.is_resumed,
        "project": settings.project,
        "name": settings.name,
        "config": settings.config,
    })
}

/// Writes what comes through the queue until it is closed, or the tracker is gone.
fn write_lines(mut stdin: ChildStdin, queue: &Receiver<String>, tracker: &str) {
    let mut has_begun = false;
    for mut line in queue {
        line.push('\n');
        if stdin.write_all(line.as_bytes()).is_err() {
            // Before the run has begun the start says what is wrong.
            if has_begun {
                tracing::warn!("{tracker} is gone: the run goes on without it; metrics.jsonl has everything");
            }
            return;
        }
        has_begun = true;
    }
}

/// The answers as they come; the first is for the start, warnings are shown.
fn read_answers(stdout: ChildStdout, tracker: String) -> Receiver<Value> {
    let (sender, answers) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Ok(answer) = serde_json::from_str::<Value>(&line) else { continue };
            if let Some(warning) = answer.get("warning").and_then(Value::as_str) {
                tracing::warn!("{tracker}: {warning} (said once; {tracker}.log has the rest)");
            } else if sender.send(answer).is_err() {
                return;
            }
        }
    });
    answers
}

/// Waits a moment; false once the deadline is over.
fn pause_until(deadline: Instant) -> bool {
    thread::sleep(Duration::from_millis(20));
    Instant::now() < deadline
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A folder with a shell script in the place of Python.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new(script: &str) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            let python = place.path("python");
            fs::write(&python, format!("#!/bin/sh\ncd '{}'\n{script}\n", place.0.path().display())).unwrap();
            fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn start(&self, finish_secs: f64) -> Result<BridgeSink, TelemetryError> {
            let limits = BridgeLimits { start: Duration::from_secs(20), finish: Duration::from_secs_f64(finish_secs) };
            BridgeSink::start(&BridgeSettings {
                tracker: "wandb",
                python: self.path("python").to_str().unwrap(),
                folder: self.0.path(),
                is_resumed: true,
                offline: true,
                project: Some("sums"),
                name: "first",
                config: json!({"seed": 1}),
                limits,
            })
        }

        fn error(&self) -> BridgeError {
            match self.start(1.0).unwrap_err() {
                TelemetryError::Bridge(error) => error,
                other => panic!("{other}"),
            }
        }
    }

    fn metrics(loss: f64) -> StepMetrics {
        let mut metrics = StepMetrics::new();
        metrics.gauge("loss", loss);
        metrics
    }

    const READY: &str = "echo '{\"ready\": true, \"url\": null}'";

    #[test]
    fn a_tracker_is_told_everything_in_order() {
        let place = Place::new(&format!("echo \"$1 $WANDB_MODE\" > arguments; {READY}; cat > fed; touch done"));
        let mut sink = place.start(20.0).unwrap();
        sink.log(1, &metrics(0.1 + 0.2)).unwrap();
        let record = CompletionRecord {
            step: 2,
            prompt: "1+1=",
            completion: "\u{2212}2\n",
            rewards: &[("exact", Some(0.5)), ("judge", None)],
            reward: Some(0.5),
            advantage: None,
            finish_reason: "stop",
        };
        sink.completion(&record).unwrap();
        sink.log(2, &metrics(f64::NAN)).unwrap();
        sink.flush().unwrap();
        sink.end(&RunEnd { results: Some(&metrics(0.25)), exit_code: 0 });
        assert!(place.path("done").exists(), "the run waits for the end");

        let fed = fs::read_to_string(place.path("fed")).unwrap();
        let lines: Vec<Value> = fed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 6, "{fed}");
        assert_eq!(lines[0]["project"], "sums");
        assert_eq!(lines[0]["config"], json!({"seed": 1}));
        assert_eq!(lines[0]["state"], place.path("wandb.json").to_str().unwrap());
        // The text, because a parser may change the last digit.
        assert!(fed.lines().nth(1).unwrap().contains("\"metrics\":{\"loss\":0.30000000000000004}"), "{fed}");
        assert_eq!(lines[2]["completion"]["completion"], "\u{2212}2\n");
        assert_eq!(lines[2]["completion"]["rewards"], json!({"exact": 0.5, "judge": null}));
        assert_eq!(lines[3]["log"]["metrics"], json!({"loss": null}));
        assert_eq!(lines[4], json!({"flush": null}));
        assert_eq!(lines[5], json!({"finish": {"results": {"loss": 0.25}, "exit_code": 0}}));
        assert_eq!(fs::read_to_string(place.path("arguments")).unwrap(), "-c offline\n");
    }

    #[test]
    fn a_run_that_fails_ends_the_input_without_a_word() {
        let place = Place::new(&format!("{READY}; cat > fed; touch done"));
        let mut sink = place.start(20.0).unwrap();
        sink.log(1, &metrics(1.0)).unwrap();
        drop(sink);
        assert!(place.path("done").exists());
        let fed = fs::read_to_string(place.path("fed")).unwrap();
        assert_eq!(fed.lines().count(), 2);
        assert!(!fed.contains("finish"));
    }

    /// The tracker dies, or reads nothing: the run goes on at its pace.
    #[test]
    fn a_tracker_that_dies_or_hangs_holds_nothing_up() {
        for script in ["exit 3", "exec sleep 600"] {
            let place = Place::new(&format!("{READY}; {script}"));
            let mut sink = place.start(0.3).unwrap();
            let started = Instant::now();
            // More than the queue and the pipe hold.
            for step in 0..3 * QUEUE_LINES as u64 {
                sink.log(step, &metrics(1.0)).unwrap();
            }
            sink.end(&RunEnd { results: None, exit_code: 0 });
            assert!(started.elapsed() < Duration::from_secs(20), "{script}: {:?}", started.elapsed());
            let _ = sink.child.kill();
        }
    }

    #[test]
    fn what_cannot_be_started_is_an_error_with_the_reason() {
        let missing = Place::new("read line; echo '{\"missing\": \"No module named wandb\"}'; exit 1").error();
        assert!(missing.to_string().ends_with("python` cannot import it: No module named wandb"), "{missing}");
        assert!(missing.hint().unwrap().contains("-m pip install wandb"));
        assert_eq!(missing.exit(), Exit::Usage);

        let refused = Place::new("read line; echo '{\"refused\": \"UsageError: no key\"}'; exit 1").error();
        assert_eq!(refused.to_string(), "wandb did not start: UsageError: no key");
        assert!(refused.hint().unwrap().contains("WANDB_MODE=offline"));
        assert_eq!(refused.exit(), Exit::Remote);

        let broken = Place::new("echo 'SyntaxError: old' >&2; exit 1").error();
        assert!(broken.to_string().ends_with("ended without an answer: SyntaxError: old"), "{broken}");

        let place = Place::new("");
        fs::remove_file(place.path("python")).unwrap();
        let none = place.error();
        assert!(matches!(none, BridgeError::NoPython { .. }), "{none}");
        assert_eq!(none.exit(), Exit::Usage);
    }
}
