//! The reward `command`: scores as good as built-in ones, and programs that do everything wrong.

#![allow(clippy::unwrap_used, reason = "a step that fails in a helper is a failed test")]

#[path = "support/tiny_run.rs"]
mod tiny_run;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tiny_run::{Bench, assert_same_run, timeless_metrics};

const SETTINGS: &str = "max_steps = 6\nsave_steps = 2\nsave_total_limit = 0\nbeta = 0.04";

/// A grader in plain shell that scores as `last_integer` does on the digits, `+` and `=` of the tiny model. Its process
/// number goes to the file `$1`; `$2` is run before each line is scored.
const GRADER: &str = r#"echo $$ >> "$1"
echo "a word on stderr" >&2
lines=0
while IFS= read -r line; do
    lines=$((lines + 1))
    eval "$2"
    id=${line#*'"id":'}; id=${id%%,*}
    completion=${line#*'"completion":"'}; completion=${completion%%'"'*}
    answer=${line#*'"answer":"'}; answer=${answer%%'"'*}
    completion=${completion%"${completion##*[0-9]}"}
    last=${completion##*[!0-9]}
    while [ "${#last}" -gt 1 ] && [ "${last#0}" != "$last" ]; do last=${last#0}; done
    if [ "$last" = "$answer" ]; then score=1; else score=0; fi
    printf '{"id":%s,"score":%s}\n' "$id" "$score"
done
"#;

/// A bench with a program, and where the program notes its process numbers.
struct Case {
    bench: Bench,
    pids: PathBuf,
    _home: tempfile::TempDir,
}

impl Case {
    /// The program is `script`, with the place for its process numbers and `before_each` as arguments. The reward has the
    /// name of the built-in one, so that everything that is written compares.
    fn new(script: &str, before_each: &str, keys: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (path, pids) = (home.path().join("grade.sh"), home.path().join("pids"));
        fs::write(&path, script).unwrap();
        let command = serde_json::json!(["sh", path, pids, before_each]);
        let table = format!("[[rewards]]\nname = \"command\"\nlabel = \"last_integer\"\ncommand = {command}\n{keys}");
        Self { bench: Bench::new(&format!("{SETTINGS}\n\n{table}")), pids, _home: home }
    }

    fn run_dir(&self) -> PathBuf {
        self.bench.output_dir("run")
    }
}

/// The processes that wrote their numbers, and that still run.
fn still_running(pids: &Path) -> Vec<String> {
    let text = fs::read_to_string(pids).unwrap_or_default();
    let is_alive =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    text.split_whitespace().filter(is_alive).map(str::to_owned).collect()
}

/// Fails if something of the program runs on after a moment.
fn assert_nothing_left(pids: &Path) {
    let until = Instant::now() + Duration::from_secs(10);
    while !still_running(pids).is_empty() {
        assert!(Instant::now() < until, "left behind: {:?}", still_running(pids));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn built_in() -> (Bench, PathBuf) {
    let bench = Bench::new(SETTINGS);
    bench.run_well("run", "never", &[]);
    let run = bench.output_dir("run");
    let rewards = timeless_metrics(&run).iter().map(|row| row["reward"].as_f64().unwrap()).sum::<f64>();
    assert!(rewards > 0.0, "a grader that always says 0 shows nothing");
    (bench, run)
}

/// The same scores give the same bits: whether the program lives through the run, dies on the way, or the run is killed
/// and resumed.
#[test]
fn a_program_that_scores_as_the_built_in_reward_trains_the_same_model() {
    let (_built_in, expected) = built_in();
    let case = Case::new(GRADER, "", "");
    let text = case.bench.run_well("run", "never", &[]);
    assert!(text.contains("last_integer: a word on stderr"), "{text}");
    assert_same_run(&expected, &case.run_dir(), "checkpoint-6");
    assert_eq!(fs::read_to_string(&case.pids).unwrap().lines().count(), 1, "one program for the whole run");
    assert_nothing_left(&case.pids);

    // 128 completions a step: the first program dies in the third, the next one at the end.
    let case = Case::new(GRADER, "[ $lines -lt 300 ] || exit 7", "");
    let text = case.bench.run_well("run", "never", &[]);
    let warning =
        "the program of the reward `last_integer` ended (exit status: 7) after 43 of 128 scores and is started";
    assert!(text.contains(warning), "{text}");
    assert_same_run(&expected, &case.run_dir(), "checkpoint-6");
    assert!(fs::read_to_string(&case.pids).unwrap().lines().count() > 1);
    assert_nothing_left(&case.pids);

    let case = Case::new(GRADER, "", "");
    let mut running = case.bench.start("run", "never", &[]);
    assert!(running.wait_for(|line| line.contains("phase=reward step=4")), "{}", running.text());
    running.kill();
    assert_nothing_left(&case.pids);
    case.bench.run_well("run", "auto", &[]);
    assert_same_run(&expected, &case.run_dir(), "checkpoint-6");
    assert_nothing_left(&case.pids);
}

/// Every way of a program to be wrong: what is said, the exit code, nothing left behind.
#[test]
fn programs_that_fail_are_told() {
    let never = "timeout_secs = 2";
    let once = "max_restarts = 0";
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            "echo $$ >> $1; echo boom >&2; exit 3",
            "",
            "ended (exit status: 3) after 0 of 128 scores, started again 2 times; the last on its stderr: boom",
            "must go on reading",
        ),
        (
            "echo $$ >> $1; kill -9 $$",
            once,
            "ended (signal: 9 (SIGKILL)) after 0 of 128 scores\n",
            "must go on reading",
        ),
        (
            "echo $$ >> $1; exec >&-; sleep 600",
            once,
            "closed its standard output after 0 of 128 scores\n",
            "must go on reading",
        ),
        (
            "echo $$ >> $1; sleep 600 & echo $! >> $1; wait",
            never,
            "gave 0 of 128 scores within 2 seconds",
            "raise `timeout_secs`",
        ),
        (
            "echo $$ >> $1; trap '' TERM; for i in 0 1 2; do echo '{\"id\":'$i',\"score\":1}'; done; sleep 600",
            never,
            "gave 3 of 128 scores within 2 seconds",
            "raise `timeout_secs`",
        ),
        (
            "echo $$ >> $1; echo ready; cat >/dev/null",
            "",
            "answered \"ready\": it is no JSON",
            "messages belong on stderr",
        ),
        (
            "echo $$ >> $1; while :; do printf 'noise and more noise'; done",
            never,
            "gave 0 of 128 scores within 2 seconds",
            "raise `timeout_secs`",
        ),
        (
            "echo $$ >> $1; while :; do echo noise; done",
            "",
            "answered \"noise\": it is no JSON",
            "messages belong on stderr",
        ),
        (
            "echo $$ >> $1; echo '{\"id\":0,\"score\":NaN}'; cat >/dev/null",
            "",
            "answered \"{\\\"id\\\":0,\\\"score\\\":NaN}\": JSON has no NaN and no Infinity",
            "an object such as",
        ),
        (
            "echo $$ >> $1; echo '{\"id\":0,\"score\":1e999}'; cat >/dev/null",
            "",
            "it is no JSON (number out of range",
            "an object such as",
        ),
        (
            "echo $$ >> $1; echo '{\"id\":0,\"score\":\"1\"}'; cat >/dev/null",
            "",
            "its `score` is \"1\", not a number or null",
            "an object such as",
        ),
        ("echo $$ >> $1; echo '{\"id\":0}'; cat >/dev/null", "", "it has no `score`", "an object such as"),
        ("echo $$ >> $1; echo 1.0; cat >/dev/null", "", "it has no `id`", "an object such as"),
        (
            "echo $$ >> $1; echo '{\"id\":128,\"score\":1}'; cat >/dev/null",
            "",
            "nothing was asked with the id 128",
            "an object such as",
        ),
        (
            "echo $$ >> $1; echo '{\"id\":5,\"score\":1}'; echo '{\"id\":5,\"score\":1}'; cat >/dev/null",
            "",
            "the id 5 was answered before",
            "an object such as",
        ),
    ];
    for (script, keys, message, hint) in cases {
        let case = Case::new(script, "", keys);
        let (code, text) = case.bench.run("run", "never", &[]);
        assert_eq!(code, Some(1), "{script}: {text}");
        assert!(
            text.contains(&format!("error: the program of the reward `last_integer` {message}").replace('\n', "\n"))
                || text.contains(message),
            "{script}: {text}"
        );
        assert!(text.contains(hint) && !text.contains("panicked"), "{script}: {text}");
        assert!(still_running(&case.pids).is_empty(), "{script}");
        assert!(case.run_dir().join("checkpoint-0").exists() || !case.run_dir().join("model.safetensors").exists());
    }
}

/// A program that is not there is told before anything is done or written, also by a dry run.
#[test]
fn programs_that_cannot_be_run_are_told_first() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "text").unwrap();
    let headless = folder.path().join("headless");
    fs::write(&headless, "no first line").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&headless, mode).unwrap();
    let cases = [
        (
            "no-such-grader".to_owned(),
            "`no-such-grader` of the reward `command` cannot be run: there is no such program",
            "looked for in PATH",
        ),
        ("./no/such/grader".to_owned(), "there is no such program", "a path counts from the folder"),
        (plain.display().to_string(), "it may not be executed", "chmod +x"),
        (folder.path().display().to_string(), "it may not be executed", "chmod +x"),
        (headless.display().to_string(), "Exec format error", "put its interpreter first"),
    ];
    for (program, message, hint) in cases {
        let bench = Bench::new(&format!("{SETTINGS}\n[[rewards]]\nname = \"command\"\ncommand = [{program:?}]\n"));
        let (code, text) = bench.run("run", "never", &[]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(message) && text.contains(hint), "{text}");
        // An executable that the system cannot load is found out by starting it.
        assert!(program.ends_with("headless") || !bench.output_dir("run").exists(), "{program}");
    }
}

/// What was learned before a program fails is kept, and the run goes on from there to the same end.
#[test]
fn a_program_that_fails_late_costs_no_step() {
    let (_built_in, expected) = built_in();
    let case = Case::new(GRADER, "[ ! -e \"$1.stop\" ] || [ $lines -lt 400 ] || echo garbage", "");
    let stop = case.pids.with_file_name("pids.stop");
    fs::write(&stop, "").unwrap();
    let (code, text) = case.bench.run("run", "never", &[]);
    assert_eq!(code, Some(1), "{text}");
    // 128 a step: the fourth has the 400th.
    assert!(case.run_dir().join("checkpoint-3/MANIFEST.json").is_file(), "{text}");
    fs::remove_file(stop).unwrap();
    case.bench.run_well("run", "auto", &[]);
    let same = |file: &str| fs::read(expected.join(file)).unwrap() == fs::read(case.run_dir().join(file)).unwrap();
    assert!(same("model.safetensors") && same("checkpoint-6/optimizer.safetensors"));
    assert_nothing_left(&case.pids);
}

/// Ctrl-C while a program hangs: the run ends within the program's time, with its state; a second one ends it at once.
/// Nothing of the program is left in either case.
#[test]
fn a_signal_ends_a_run_whose_program_hangs() {
    for (signals, within) in [(1, 6.0), (2, 1.5)] {
        let hang = "[ $lines -lt 300 ] || { sleep 600 & echo $! >> \"$1\"; wait; }";
        let case = Case::new(GRADER, hang, "timeout_secs = 4");
        let mut running = case.bench.start("run", "never", &[]);
        assert!(running.wait_for(|line| line.contains("phase=reward step=3")), "{}", running.text());
        std::thread::sleep(Duration::from_millis(300));
        let sent = Instant::now();
        for _ in 0..signals {
            running.signal("INT");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(running.wait().code(), Some(130), "{}", running.text());
        assert!(sent.elapsed().as_secs_f64() < within, "{:?}", sent.elapsed());
        assert_nothing_left(&case.pids);
        assert!(case.run_dir().join("checkpoint-2/MANIFEST.json").is_file());
        let newest = case.run_dir().join("checkpoint-4");
        assert!(!newest.exists());
    }
}
