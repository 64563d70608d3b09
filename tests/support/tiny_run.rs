//! A tiny GRPO run through the binary, for tests that interrupt it: 4 layers, 64 wide, 14 tokens, random first weights.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several test files")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// Longest that anything here may take before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a model, data and a config; runs write below it.
pub struct Bench {
    dir: tempfile::TempDir,
}

/// A line that the program wrote to stderr, and when it came.
pub type Line = (Instant, String);

/// A running program whose stderr is read as it comes.
pub struct Running {
    child: Child,
    lines: Receiver<Line>,
    /// All lines that were read so far.
    pub seen: Vec<Line>,
}

impl Bench {
    /// Writes the model, the data and `run.toml`; `settings` are added to the config.
    pub fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        write_json(&model.join("config.json"), &model_config());
        write_json(&model.join("tokenizer.json"), &tokenizer());
        write_json(
            &model.join("tokenizer_config.json"),
            &json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<eos>" }),
        );
        let rows: Vec<String> = (0..40)
            .map(|i| (i * 7 % 5, i * 3 % 5))
            .map(|(a, b)| json!({ "prompt": format!("{a}+{b}="), "answer": (a + b).to_string() }).to_string())
            .collect();
        let data = dir.path().join("train.jsonl");
        fs::write(&data, rows.join("\n")).unwrap();
        let config = format!(
            "model = '{}'\ninit = \"random\"\ntrain_file = '{}'\ndevice = \"cpu\"\nseed = 3\nprompts_per_step = 8\n\
             num_generations = 16\nmax_completion_length = 3\nlearning_rate = 3e-3\nlog_completions = 4\n{settings}\n",
            model.display(),
            data.display(),
        );
        fs::write(dir.path().join("run.toml"), config).unwrap();
        Self { dir }
    }

    /// The folder of one run.
    pub fn output_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `candlewick train` into [`Bench::output_dir`] with `resume` and further `--set` values.
    pub fn start(&self, name: &str, resume: &str, settings: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
        command.arg("train").arg(self.dir.path().join("run.toml"));
        command.arg("--set").arg(format!("output_dir='{}'", self.output_dir(name).display()));
        command.arg("--set").arg(format!("resume={resume:?}"));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command.env("RUST_LOG", "info,candlewick::trainer::phase=debug").env("NO_COLOR", "1");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || forward(stderr, &sender));
        Running { child, lines, seen: Vec::new() }
    }

    /// Runs to the end and returns the exit code with all that was written to stderr.
    pub fn run(&self, name: &str, resume: &str, settings: &[&str]) -> (Option<i32>, String) {
        let mut running = self.start(name, resume, settings);
        let status = running.wait();
        (status.code(), running.text())
    }

    /// Like [`Bench::run`], for a run that must succeed.
    pub fn run_well(&self, name: &str, resume: &str, settings: &[&str]) -> String {
        let (code, text) = self.run(name, resume, settings);
        assert_eq!(code, Some(0), "{text}");
        text
    }
}

fn forward(stderr: impl std::io::Read, sender: &Sender<Line>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if sender.send((Instant::now(), line)).is_err() {
            return;
        }
    }
}

impl Running {
    /// Waits for the next line; `None` once the program has closed stderr.
    pub fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line.1)
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                self.kill();
                panic!("nothing happened for {PATIENCE:?}; so far:\n{}", self.text());
            }
        }
    }

    /// Waits for a line that `is_wanted`; false where the program ended without one.
    pub fn wait_for(&mut self, is_wanted: impl Fn(&str) -> bool) -> bool {
        while let Some(line) = self.next_line() {
            if is_wanted(&line) {
                return true;
            }
        }
        false
    }

    /// Ends the program as `kill -9` does, and reads what it had still written.
    pub fn kill(&mut self) {
        // It may have ended by itself just before.
        let _ = self.child.kill();
        self.child.wait().unwrap();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
    }

    /// Sends a signal by its name, as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        while self.next_line().is_some() {}
        self.child.wait().unwrap()
    }

    /// All that was written to stderr so far.
    pub fn text(&self) -> String {
        self.seen.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// The phases that began, with their steps, in order.
    pub fn phases(&self) -> Vec<(Instant, String, u64)> {
        self.seen.iter().filter_map(|(at, line)| phase_of(line).map(|(name, step)| (*at, name, step))).collect()
    }
}

/// Name and step of a line that says `phase=NAME step=N`.
pub fn phase_of(line: &str) -> Option<(String, u64)> {
    let (_, rest) = line.split_once("phase=")?;
    let (name, rest) = rest.split_once(" step=")?;
    Some((name.to_owned(), rest.trim().parse().ok()?))
}

/// Fails unless two runs left the same weights, optimizer, history and logs, times apart.
pub fn assert_same_run(left: &Path, right: &Path, last_checkpoint: &str) {
    let checkpoint = |name: &str| format!("{last_checkpoint}/{name}");
    for file in ["model.safetensors".to_owned(), checkpoint("model.safetensors"), checkpoint("optimizer.safetensors")] {
        let (a, b) = (fs::read(left.join(&file)).unwrap(), fs::read(right.join(&file)).unwrap());
        assert!(a == b, "{file} differs between {} and {}", left.display(), right.display());
    }
    for file in ["completions.jsonl".to_owned(), checkpoint("trainer_state.json")] {
        let (a, b) = (fs::read_to_string(left.join(&file)).unwrap(), fs::read_to_string(right.join(&file)).unwrap());
        assert_eq!(a, b, "{file}");
    }
    let (a, b) = (timeless_metrics(left), timeless_metrics(right));
    assert_eq!(a.len(), b.len(), "rows of metrics.jsonl");
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b);
    }
}

/// The rows of `metrics.jsonl` without what depends on the clock or the machine.
pub fn timeless_metrics(output_dir: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(output_dir.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap());
    rows.map(|row| {
        row.into_iter().filter(|(name, _)| !candlewick::telemetry::StepMetrics::is_wall_clock(name)).collect()
    })
    .collect()
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}

fn model_config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 14, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "torch_dtype": "float32", "eos_token_id": 0, "bos_token_id": 0,
        "initializer_range": 0.02,
    })
}

/// One token a character, by a byte-level BPE without merges.
fn tokenizer() -> Value {
    let vocab: Map<String, Value> = ["<eos>", "+", "=", "\u{120}"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..10).map(|digit| digit.to_string()))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{
            "id": 0, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}
