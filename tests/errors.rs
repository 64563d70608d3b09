//! What the program says when it cannot do what was asked: a table of inputs, the messages and the exit codes. Nothing
//! a user can hand over may panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/model_folder.rs"]
mod model_folder;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candlewick::io::DirLock;

/// A folder with a model, data and whatever a case adds; the program runs inside it.
struct Place {
    folder: tempfile::TempDir,
    report: String,
    wrong: Vec<String>,
}

const GOOD_ROWS: &str = "{\"prompt\": \"1+2=\", \"answer\": 3}\n{\"prompt\": \"4+4=\", \"answer\": \"8\"}\n";

/// A run of one step that takes a moment.
const RUN: &str = r#"
model = "model"
train_file = "good.jsonl"
output_dir = "out"
max_steps = 1
num_generations = 2
prompts_per_step = 2
max_completion_length = 4
max_prompt_length = 600
offline = true
"#;

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixtures::copy_model("qwen2_tied", &folder.path().join("model"));
        let place = Self { folder, report: String::new(), wrong: Vec::new() };
        place.write("good.jsonl", GOOD_ROWS);
        place.write("run.toml", RUN);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// Another copy of the model, to be spoilt.
    fn model(&self, name: &str, spoil: impl FnOnce(&Path)) {
        fixtures::copy_model("qwen2_tied", &self.path(name));
        spoil(&self.path(name));
    }

    /// The program inside the folder, with nothing of the environment that could change what it does.
    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CANDLEWICK_", "HF_", "RUST_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        // No hub can be asked, whatever a case names, and its cache is empty.
        command.env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        command.args(args).current_dir(self.folder.path());
        command
    }

    /// Runs the program, appends to the report, and holds it to the exit code.
    fn case(&mut self, name: &str, exit: i32, args: &[&str]) {
        let output = self.program(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        if code != Some(exit) || stderr.contains("panicked") || !output.stdout.is_empty() {
            self.wrong.push(format!("{name}: {code:?} instead of {exit}, or a panic, or something on stdout"));
        }
        let told = format!("# {name}\n$ candlewick {}\n{stderr}[{exit}]\n\n", args.join(" "));
        self.report.push_str(&told);
    }

    fn eval(&mut self, name: &str, exit: i32, model: &str, data: &str) {
        self.case(name, exit, &["eval", model, "--data", data, "--max-completion-length", "4"]);
    }

    fn train(&mut self, name: &str, exit: i32, args: &[&str]) {
        self.case(name, exit, &[&["train", "run.toml"], args].concat());
    }

    /// Makes a run that succeeds and leaves its checkpoint in `out`.
    fn trained(&self) {
        let output = self.program(&["train", "run.toml"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(self.path("out/checkpoint-1/model.safetensors").is_file());
    }

    fn check(self, name: &str) {
        let root = regex::escape(&self.folder.path().display().to_string());
        let filters = [(root.as_str(), "TMP"), (r"process \d+ on host \S+\)", "process PID on host HOST)")];
        insta::with_settings!({filters => filters}, { insta::assert_snapshot!(name, self.report) });
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}

#[test]
fn models_that_cannot_be_used() {
    let mut place = Place::new();
    place.eval("no such folder", 2, "no/such/folder", "good.jsonl");
    place.eval("not in the cache", 8, "org/name", "good.jsonl");
    fs::create_dir(place.path("data")).unwrap();
    place.eval("no such folder in one that is there", 8, "data/startr", "good.jsonl");
    place.eval("a file", 4, "good.jsonl", "good.jsonl");
    place.model("empty", |folder| fs::remove_dir_all(folder).and_then(|()| fs::create_dir(folder)).unwrap());
    place.eval("an empty folder", 4, "./empty", "good.jsonl");

    let weights = fs::read(fixtures::folder("qwen2_tied").join("model.safetensors")).unwrap();
    let spoilt = |place: &Place, name: &str, weights: &[u8]| {
        place.model(name, |folder| fs::write(folder.join("model.safetensors"), weights).unwrap());
    };
    spoilt(&place, "truncated", &weights[..weights.len() / 2]);
    place.eval("truncated weights", 4, "./truncated", "good.jsonl");
    spoilt(&place, "corrupt", &[&[0xff; 8], &weights[8..]].concat());
    place.eval("a corrupt header", 4, "./corrupt", "good.jsonl");
    spoilt(&place, "zero", b"");
    place.eval("weights of no bytes", 4, "./zero", "good.jsonl");
    place.model("misfit", |folder| {
        let text = fs::read_to_string(folder.join("config.json")).unwrap();
        let text = text.replace("\"intermediate_size\": 27", "\"intermediate_size\": 28");
        fs::write(folder.join("config.json"), text).unwrap();
    });
    place.eval("weights of another shape", 4, "./misfit", "good.jsonl");
    let mut broken = weights.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    spoilt(&place, "nan", &broken);
    place.eval("a weight that is not a number", 4, "./nan", "good.jsonl");
    place.model("pickle", |folder| {
        fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    });
    place.eval("pickled weights only", 4, "./pickle", "good.jsonl");

    place.model("other", |folder| fs::write(folder.join("config.json"), r#"{"model_type": "gpt2"}"#).unwrap());
    place.eval("an unknown architecture", 4, "./other", "good.jsonl");
    place.model("mute", |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap());
    place.eval("no tokenizer", 4, "./mute", "good.jsonl");
    place.model("garbled", |folder| fs::write(folder.join("tokenizer.json"), "{\"model\": 3}").unwrap());
    place.eval("a tokenizer that is none", 4, "./garbled", "good.jsonl");
    // A model with 11 ids under a tokenizer with 54.
    place.model("small", |folder| {
        fs::write(folder.join("config.json"), model_folder::CONFIG).unwrap();
        fs::write(folder.join("model.safetensors"), model_folder::serialize(&model_folder::tensors())).unwrap();
    });
    place.eval("a tokenizer of another model", 4, "./small", "good.jsonl");
    place.train("the same in training", 4, &["--model=./truncated"]);
    place.check("models_that_cannot_be_used");
}

#[test]
fn data_that_cannot_be_used() {
    let mut place = Place::new();
    place.eval("no such file", 5, "model", "nowhere.jsonl");
    place.eval("a folder", 3, "model", "model");
    place.write("empty.jsonl", "\n\n");
    place.eval("no rows", 3, "model", "empty.jsonl");
    place.write(
        "bad.jsonl",
        format!("{GOOD_ROWS}{{\"prompt\": \"1+1=\" \"answer\": 2}}\n[1]\n{{\"question\": \"?\"}}\n"),
    );
    place.eval("malformed rows", 3, "model", "bad.jsonl");
    place.write("latin1.jsonl", b"{\"prompt\": \"caf\xe9\"}\n");
    place.eval("not UTF-8", 3, "model", "latin1.jsonl");
    place.write("array.json", "[\n  {\"prompt\": \"1+2=\", \"answer\": 3},\n  {\"prompt\": \"1");
    place.eval("a JSON array that is cut short", 3, "model", "array.json");
    place.write("cut.parquet", "PAR1");
    place.eval("a Parquet file that is cut short", 3, "model", "cut.parquet");
    place.write("words.jsonl", format!("{GOOD_ROWS}{{\"prompt\": \"2+2=\", \"answer\": \"four\"}}\n"));
    place.eval("an answer without an integer", 3, "model", "words.jsonl");
    place.write("none.jsonl", "{\"prompt\": \"2+2=\"}\n");
    place.eval("no answer", 3, "model", "none.jsonl");
    place.write("blank.jsonl", "{\"prompt\": \"\", \"answer\": 1}\n");
    place.eval("an empty prompt", 3, "model", "blank.jsonl");
    place.write("foreign.jsonl", "{\"prompt\": \"世界\", \"answer\": 1}\n");
    place.eval("a prompt in letters that the tokenizer lacks", 3, "model", "foreign.jsonl");
    place.write("chat.jsonl", "{\"prompt\": [{\"role\": \"user\", \"content\": \"1+2=\"}], \"answer\": 3}\n");
    place.eval("a conversation without a template", 2, "model", "chat.jsonl");
    let long = format!("{{\"prompt\": \"{}\", \"answer\": 1}}\n", "1+".repeat(256));
    place.write("long.jsonl", long.repeat(2));
    place.eval("prompts longer than the context", 3, "model", "long.jsonl");

    let cases = [
        ("no such file", 2, "nowhere.jsonl"),
        ("no rows", 3, "empty.jsonl"),
        ("malformed rows", 3, "bad.jsonl"),
        ("an answer without an integer", 3, "words.jsonl"),
        ("an empty prompt", 3, "blank.jsonl"),
        ("a conversation without a template", 2, "chat.jsonl"),
        ("prompts longer than the context", 3, "long.jsonl"),
    ];
    for (name, exit, file) in cases {
        let file = format!("--train-file={file}");
        place.train(&format!("training: {name}"), exit, &[&file]);
    }
    place.train("training: prompts longer than max_prompt_length", 3, &["--max-prompt-length=3"]);
    place.train("training: evaluation rows that do not fit", 3, &["--eval-file=words.jsonl"]);
    let supervised = RUN.replace("num_generations = 2", "algorithm = \"sft\"");
    place.write("sft.toml", &supervised);
    place.case("supervised: no completions", 3, &["train", "sft.toml"]);
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"12\"}}\n", "1+".repeat(255));
    place.write("completed.jsonl", long);
    place.case("supervised: longer than the context", 3, &["train", "sft.toml", "--train-file=completed.jsonl"]);
    assert!(!place.path("out/metrics.jsonl").exists(), "a run that did not start leaves no metrics");
    place.check("data_that_cannot_be_used");
}

#[test]
fn settings_that_cannot_be_used() {
    let mut place = Place::new();
    place.train("an unknown reward", 2, &["--set=rewards=[{ name = \"style\" }]"]);
    place.train("no such device here", 2, &["--device=cuda"]);
    place.train("bf16 on the CPU", 2, &["--dtype=bf16"]);
    place.train("the plan says so too", 2, &["--dtype=bf16", "--dry-run"]);
    place.train("one completion a prompt", 2, &["--num-generations=1"]);
    place.train("more completions than can be", 2, &["--prompts-per-step=9223372036854775807"]);
    place.train("no threads", 2, &["--threads=0"]);
    place.train("not a number", 2, &["--learning-rate=nan"]);
    place.train("a template that does not parse", 4, &["--set=chat_template=\"{% if %}\""]);
    let eval: [&str; 6] = ["eval", "model", "--data", "good.jsonl", "--max-completion-length", "4"];
    place.case("no such device here", 2, &[&eval[..], &["--device", "cuda"]].concat());
    place.case("an unknown device", 2, &[&eval[..], &["--device", "tpu"]].concat());
    place.case("no samples", 2, &[&eval[..], &["--num-samples", "0"]].concat());
    place.case("more samples than can be", 2, &[&eval[..], &["--num-samples", "4294967295"]].concat());
    place.case("a negative seed", 2, &[&eval[..], &["--seed=-1"]].concat());
    place.case("a chat without a template", 2, &["generate", "model", "1+2=", "--chat"]);
    place.case("a negative temperature", 2, &["generate", "model", "1+2=", "--temperature", "-1"]);
    place.case("an empty prompt", 3, &["generate", "model", ""]);
    place.case("a prompt longer than the context", 3, &["generate", "model", &"7".repeat(512)]);
    let report = std::mem::take(&mut place.report);
    place.report = report.replace(&"7".repeat(512), "7...7");
    place.check("settings_that_cannot_be_used");
}

#[test]
fn output_folders_that_cannot_be_used() {
    let mut place = Place::new();
    place.train("resume what is not there", 2, &["--resume=out/checkpoint-5"]);
    place.write("file", "");
    place.train("the output folder is a file", 5, &["--output-dir=file"]);

    place.train("the folder of the model itself", 2, &["--output-dir=model"]);
    place.write("mine/README.md", "# mine");
    place.train("a folder with a page of somebody's", 2, &["--output-dir=mine", "--resume=auto"]);

    place.trained();
    place.train("a fresh run over checkpoints", 2, &[]);
    place.train("a fresh run over checkpoints, dry", 2, &["--dry-run"]);
    let eval = ["eval", "model", "--data", "good.jsonl", "--output", "file/results"];
    place.case("results into what is no folder", 5, &eval);
    fs::create_dir(place.path("stopped")).unwrap();
    fs::rename(place.path("out/checkpoint-1"), place.path("stopped/checkpoint-1")).unwrap();
    place.eval("the folder of a run that was stopped", 4, "./stopped", "good.jsonl");
    fs::rename(place.path("stopped/checkpoint-1"), place.path("out/checkpoint-1")).unwrap();
    let taken = fs::read(place.path("model/model.safetensors")).unwrap();
    let mut other = taken.clone();
    *other.last_mut().unwrap() ^= 1;
    place.write("model/model.safetensors", &other);
    place.train("a base model whose weights have changed", 2, &["--resume=auto"]);
    place.write("model/model.safetensors", &taken);
    fs::rename(place.path("out/checkpoint-1"), place.path("kept")).unwrap();
    place.train("a finished run whose checkpoints are gone", 2, &["--resume=auto"]);
    fs::rename(place.path("kept"), place.path("out/checkpoint-1")).unwrap();
    place.train("another model", 2, &["--resume", "auto", "--model=./model"]);
    place.train("resume a folder that is no checkpoint", 5, &["--resume=model"]);
    {
        let _lock = DirLock::acquire(&place.path("out")).unwrap();
        place.train("a second run in the folder", 7, &["--resume", "auto"]);
    }
    let weights = place.path("out/checkpoint-1/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    place.train("the only checkpoint is damaged", 5, &["--resume", "auto"]);
    place.train("the damaged checkpoint by name", 5, &["--resume=out/checkpoint-1"]);
    place.check("output_folders_that_cannot_be_used");
}

/// Values at the edge of their type do something or say why not; they never bring the program down.
#[test]
fn extreme_values_do_not_panic() {
    let place = Place::new();
    let huge = u64::MAX.to_string();
    let eval = ["eval", "model", "--data", "good.jsonl", "--json"];
    let short = "--max-completion-length=2";
    let cases: Vec<Vec<&str>> = vec![
        [&eval[..], &["--max-completion-length", &huge]].concat(),
        [&eval[..], &["--max-completion-length", "0"]].concat(),
        [&eval[..], &["--slots", &huge, short]].concat(),
        [&eval[..], &["--top-k", &huge, "--temperature", "1", short]].concat(),
        [&eval[..], &["--temperature", "1e-300", short]].concat(),
        [&eval[..], &["--temperature", "1e300", short]].concat(),
        [&eval[..], &["--temperature", "nan", short]].concat(),
        [&eval[..], &["--temperature", "inf", short]].concat(),
        [&eval[..], &["--temperature", "1", "--top-p", "nan", short]].concat(),
        [&eval[..], &["--temperature", "1", "--top-p=-1", short]].concat(),
        [&eval[..], &["--temperature", "1", "--min-p", "7", short]].concat(),
        [&eval[..], &["--temperature", "1", "--repetition-penalty", "0", short]].concat(),
        [&eval[..], &["--repetition-penalty", "inf", short]].concat(),
        [&eval[..], &["--seed", &huge, "--num-rows", "0", short]].concat(),
        [&eval[..], &["--num-rows", &huge, "--stop", "", "--stop", "1", short]].concat(),
        vec![
            "train",
            "--dry-run",
            "--model=model",
            "--train-file=good.jsonl",
            "--set",
            "prompts_per_step=9223372036854775807",
        ],
        vec!["train", "--dry-run", "--model=model", "--train-file=good.jsonl", "--set", "num_train_epochs=1e300"],
        vec![
            "train",
            "--dry-run",
            "--model=model",
            "--train-file=good.jsonl",
            "--set",
            "num_iterations=9223372036854775807",
        ],
    ];
    for args in cases {
        let output = place.program(&args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        println!("{args:?}: {code:?} {}", stderr.lines().next().unwrap_or_default());
        assert!(!stderr.contains("panicked") && code.is_some_and(|code| code < 100), "{args:?}: {code:?}\n{stderr}");
    }
}
