//! The program from outside: exit codes, what goes to stdout and what to stderr.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn candlewick(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CANDLEWICK_") {
            command.env_remove(name);
        }
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn output(args: &[&str]) -> Output {
    candlewick(args).output().expect("the program starts")
}

#[test]
fn a_config_is_shown_on_stdout_and_nothing_else_is() {
    let args = ["config", "show", "configs/quickstart.toml", "--set", "beta=.5", "--learning_rate=1e-5"];
    let shown = output(&args);
    assert_eq!(shown.status.code(), Some(0));
    assert_eq!(text(&shown.stderr), "");
    assert!(text(&shown.stdout).contains("beta = 0.5  # --set beta=.5\n"));
    assert!(text(&shown.stdout).contains("learning_rate = 0.00001  # --learning-rate 1e-5\n"));

    let json = candlewick(&args).arg("--json").env("CANDLEWICK_SEED", "7").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["seed"]["value"], 7);
    assert_eq!(json["seed"]["source"], "environment variable CANDLEWICK_SEED=7");
}

#[test]
fn wrong_settings_and_wrong_arguments_exit_with_2() {
    let wrong = output(&["config", "show", "configs/nowhere.toml", "--set", "lr=1"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(text(&wrong.stdout), "");
    insta::assert_snapshot!(text(&wrong.stderr), @"
    error: the configuration has 2 errors

    configuration file configs/nowhere.toml does not exist
     --> configs/nowhere.toml

    unknown setting `lr`
     --> --set lr=1
     = help: `lr` is called `learning_rate` here

    hint: `candlewick config reference` describes every setting
    ");

    assert_eq!(output(&["config", "shwo"]).status.code(), Some(2));
    assert_eq!(output(&[]).status.code(), Some(2));
    assert_eq!(output(&["--help"]).status.code(), Some(0));
    let help = text(&output(&["train", "--help"]).stdout);
    assert!(help.contains("dpo, reward, sft") && help.contains("auto, f32, tf32, bf16"), "{help}");
}

#[test]
fn a_bare_resume_flag_means_auto() {
    let shown = output(&["config", "show", "configs/quickstart.toml", "--resume"]);
    assert!(text(&shown.stdout).contains("resume = \"auto\""));
    let swallowed = output(&["config", "show", "--resume", "configs/quickstart.toml"]);
    assert!(text(&swallowed.stderr).contains("write `--resume` after the files"));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = candlewick(&["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(text(&done.stderr), "");
}

/// Also where stdout is a file, the rows go to that file and it stays the same one.
#[test]
fn sums_can_be_written_to_stdout() {
    let mut file = tempfile::tempfile().unwrap();
    let mut command = candlewick(&["data", "arithmetic", "/dev/stdout", "--rows", "5"]);
    assert!(command.stdout(file.try_clone().unwrap()).status().unwrap().success());
    let mut rows = String::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut rows)).unwrap();
    assert_eq!(rows.lines().filter(|line| line.starts_with("{\"prompt\":")).count(), 5, "{rows}");
    assert_eq!(rows.lines().count(), 5, "{rows}");
}

#[test]
fn sums_are_written_and_impossible_ones_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums.jsonl");
    let path = path.to_str().unwrap();
    let made = output(&["data", "arithmetic", path, "--rows", "5", "--operators", "-", "--split", "eval"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 5);
    assert_ne!(output(&["data", "arithmetic", path, "--rows", "5", "--max-operand", "0"]).status.code(), Some(0));
    assert_ne!(output(&["data", "arithmetic", path, "--operators", "*"]).status.code(), Some(0));
    // Words that contradict each other, and a fraction of nothing, are wrong arguments.
    for args in [["--digits", "2", "--max-operand", "9"], ["--test-file", "t", "--split", "eval"]] {
        assert_eq!(output(&[&["data", "arithmetic", path], &args[..]].concat()).status.code(), Some(2));
    }
    assert_eq!(output(&["data", "arithmetic", path, "--test-fraction", "0.2"]).status.code(), Some(2));
}

const SUMS: [&str; 6] = ["--data", "data/math_tasks_eval.jsonl", "--num-rows", "12", "--max-completion-length", "32"];

/// A model beside itself has the same figures twice; the columns have the names that were given.
#[test]
fn models_are_evaluated_side_by_side() {
    let args =
        [&["eval", "data/starter", "data/starter"], &SUMS[..], &["--label", "before", "--label", "after"]].concat();
    let shown = output(&args);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    let table = text(&shown.stdout);
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace();
    assert_eq!(line("model").collect::<Vec<_>>(), ["model", "before", "after"]);
    let accuracy: Vec<_> = line("accuracy").collect();
    assert_eq!(accuracy[1..4], accuracy[4..], "{accuracy:?}");
    assert_eq!(table.matches("\nprompt ").count(), 3);
    assert_eq!(table.matches("\nbefore ").count(), 3);

    let json = output(&[&args[..], &["--json", "--letter", "1"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let models = json["models"].as_array().unwrap();
    assert_eq!(models[1]["label"], "after");
    for key in ["accuracy", "reward_distribution", "answers", "text"] {
        assert!(!models[0][key].is_null() && models[0][key] == models[1][key], "{key}: {}", models[0][key]);
    }
    let counts = models[0]["reward_distribution"]["bins"].as_array().unwrap();
    assert_eq!(counts.iter().map(|bin| bin["count"].as_u64().unwrap()).sum::<u64>(), 12);
    assert!(models[0]["text"]["given_share"].as_f64().unwrap() > 0.0);
}

/// What a configuration says of rewards and data holds; what the command line says wins.
#[test]
fn an_evaluation_takes_settings_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("run.toml");
    std::fs::write(
        &config,
        "model = 'x'\ntrain_file = 'x'\neval_file = 'data/math_tasks_eval.jsonl'\nmax_completion_length = 1\n\
         [[rewards]]\nname = 'last_integer'\nwrong_reward = -3.0\n",
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let reward_of = |more: &[&str]| {
        let args = ["eval", "data/starter", "--config", config, "--num-rows", "8", "--json"];
        let done = output(&[&args[..], more].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        serde_json::from_slice::<serde_json::Value>(&done.stdout).unwrap()
    };
    // One token is a space or a digit: hardly ever the whole answer.
    let short = reward_of(&[]);
    assert_eq!(
        (&short["accuracy"], &short["mean_reward"], &short["clipped_ratio"]),
        (&0.0.into(), &(-3.0).into(), &1.0.into())
    );
    let results = folder.path().join("results");
    let sampling = ["--min-p", "0.125", "--repetition-penalty", "1.5", "--stop", "#"];
    let written = [&["--max-completion-length", "32", "--output", results.to_str().unwrap()], &sampling[..]].concat();
    reward_of(&written);
    let files = std::fs::read_dir(results.join("data__starter")).unwrap().map(|entry| entry.unwrap().path());
    let of_results = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("results");
    let file = std::fs::read(files.into_iter().find(of_results).unwrap()).unwrap();
    let recorded = &serde_json::from_slice::<serde_json::Value>(&file).unwrap()["config"];
    let kwargs = &recorded["gen_kwargs"];
    assert_eq!((&kwargs["min_p"], &kwargs["repetition_penalty"]), (&0.125.into(), &1.5.into()), "{recorded}");
    assert_eq!((&kwargs["stop"][0], &recorded["device"]), (&"#".into(), &"cpu".into()), "{recorded}");
    let long = reward_of(&["--max-completion-length", "32"]);
    assert!(long["mean_completion_tokens"].as_f64().unwrap() > 2.0);

    // This grader looks at the score and reads no answer.
    let by_reward = reward_of(&["--max-completion-length", "32", "--set", "eval_grader=reward"]);
    assert!(by_reward["answers"]["none"] == 8, "{}", by_reward["answers"]);

    std::fs::write(config, "model = 'x'\ntrain_file = 'x'\n").unwrap();
    let wrong = output(&["eval", "data/starter", "--config", config]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("there is no `eval_file` to evaluate on"), "{}", text(&wrong.stderr));
}

#[test]
fn of_several_models_the_one_at_fault_is_named() {
    let wrong = output(&[&["eval", "data/starter", "data"], &SUMS[..]].concat());
    assert_eq!(wrong.status.code(), Some(4));
    assert!(text(&wrong.stderr).starts_with("error: data: "), "{}", text(&wrong.stderr));
    let labels = output(&[&["eval", "data/starter", "--label", "a", "--label", "b"], &SUMS[..]].concat());
    assert_eq!(labels.status.code(), Some(2));
    assert!(text(&labels.stderr).contains("2 labels for 1 models"));
}

/// A text alone is enough; models of different tokenizers are told apart.
#[test]
fn texts_have_a_perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "12 + 7 = 19\n3 - 2 = 1\n").unwrap();
    let path = path.to_str().unwrap();
    let twice = output(&["eval", "data/starter", "data/starter", "--text", path]);
    assert_eq!(twice.status.code(), Some(0), "{}", text(&twice.stderr));
    let table = text(&twice.stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], format!("perplexity of {path}"));
    assert!(lines[1].starts_with("  starter      ") && lines[1].ends_with(" tokens)"), "{table}");
    assert_eq!(lines[1].split_once("starter  ").unwrap().1.trim(), lines[2].split_once("(2)").unwrap().1.trim());
    assert_eq!(lines.len(), 3, "one tokenizer, so no remark: {table}");

    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir("data/starter").unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
    }
    let tokenizer = std::fs::read_to_string(other.join("tokenizer.json")).unwrap();
    std::fs::write(other.join("tokenizer.json"), tokenizer + "\n").unwrap();
    let other = other.to_str().unwrap();
    let both = text(&output(&["eval", "data/starter", other, "--text", path]).stdout);
    assert!(both.ends_with("the tokenizers differ: these figures do not compare\n"), "{both}");

    let json = output(&[&["eval", "data/starter", other, "--text", path, "--json"], &SUMS[..]].concat());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["tokenizers_differ"], true);
    let model = &json["models"][1];
    let (loss, perplexity) = (model["perplexity_loss"].as_f64().unwrap(), model["perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-9 * perplexity && model["accuracy"].is_f64());
    let missing = output(&["eval", "data/starter", other, "--text", "no/such.txt"]);
    assert_ne!(missing.status.code(), Some(0));
}

/// What `doctor` says of this machine can be read by a program, and never holds the token.
#[test]
fn the_doctor_tells_what_there_is() {
    let cache = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| {
        let mut command = candlewick(args);
        command.env("HF_TOKEN", "hf_secret").env("HF_HUB_CACHE", cache.path().join("not/made/yet"));
        command.output().unwrap()
    };
    let (table, json) = (ask(&["doctor"]), ask(&["doctor", "--json"]));
    for output in [&table, &json] {
        assert_eq!(output.status.code(), Some(0));
        assert!(!text(&output.stdout).contains("hf_secret") && text(&output.stderr).is_empty());
    }
    assert!(text(&table.stdout).contains("token        present\n"));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["hub"]["token"], true);
    assert_eq!(json["gpu"]["built"], cfg!(feature = "cuda"));
    assert!(json["threads"].as_u64() > Some(0) && json["memory_bytes"].as_u64() > Some(0));
    // The folder is not there: the disk is that of the nearest one above it.
    assert_eq!(json["disks"][1]["folder"], cache.path().to_str().unwrap());
    assert!(json["disks"][1]["free_bytes"].as_u64() > Some(0));
}

/// A report says where it is and how large, tells what it could not read, and refuses what is no run.
#[test]
fn runs_become_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"reward\":0.5}\nnoise\n").unwrap();
    let (run, page) = (run.to_str().unwrap(), folder.path().join("page.html"));
    let page = page.to_str().unwrap();
    let written = output(&["report", run, run, "--output", page]);
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    let size = std::fs::metadata(page).unwrap().len().div_ceil(1024);
    assert_eq!(text(&written.stdout), format!("{page} ({size} KiB, 2 runs)\n"));
    assert!(text(&written.stderr).contains("metrics.jsonl: 1 line of 2 left out; the first is line 2"));

    let nothing = output(&["report", folder.path().to_str().unwrap(), "--output", page]);
    assert_eq!(nothing.status.code(), Some(3));
    assert!(text(&nothing.stderr).contains(&format!("hint: name the runs in it: candlewick report {run}")));
    assert_eq!(output(&["report", run, "--label", "a", "--label", "b"]).status.code(), Some(2));
    assert_eq!(output(&["report"]).status.code(), Some(2));
    let unwritable = output(&["report", run, "--output", &format!("{run}/metrics.jsonl/page.html")]);
    assert_eq!(unwritable.status.code(), Some(5), "{}", text(&unwritable.stderr));
}

#[test]
fn every_shell_gets_completions_that_name_the_verbs() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = output(&["completions", shell]);
        assert_eq!(script.status.code(), Some(0), "{shell}");
        for verb in ["train", "eval", "generate", "doctor", "--max-completion-length"] {
            assert!(text(&script.stdout).contains(verb.trim_start_matches('-')), "{shell}: {verb}");
        }
    }
}

#[test]
fn recipes_are_listed_and_copied() {
    let listed = output(&["ls"]);
    assert_eq!(listed.status.code(), Some(0));
    let line = text(&listed.stdout).lines().find(|line| line.starts_with("quickstart ")).unwrap().to_owned();
    assert!(line.ends_with("A small starter model learns to answer so that the grader can read it."), "{line}");
    let json: serde_json::Value = serde_json::from_slice(&output(&["ls", "--json"]).stdout).unwrap();
    assert!(json.as_array().unwrap().iter().any(|recipe| recipe["name"] == "addition/grpo"));

    let folder = tempfile::tempdir().unwrap();
    let copy = |args: &[&str]| candlewick(&[&["cp"], args].concat()).current_dir(folder.path()).output().unwrap();
    let copied = copy(&["quickstart"]);
    assert_eq!(copied.status.code(), Some(0), "{}", text(&copied.stderr));
    insta::assert_snapshot!(text(&copied.stdout), @"
    quickstart.toml
      needs data/starter (model), which is not here: in the source tree of candlewick
      needs data/math_tasks_train.jsonl (train_file), which is not here: in the source tree of candlewick
      needs data/math_tasks_eval.jsonl (eval_file), which is not here: in the source tree of candlewick
    ");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("quickstart.toml")).unwrap(),
        std::fs::read_to_string("configs/quickstart.toml").unwrap()
    );
    let refused = copy(&["quickstart"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("quickstart.toml exists"), "{}", text(&refused.stderr));
    assert_eq!(copy(&["quickstart", "--force"]).status.code(), Some(0));
    assert_eq!(copy(&["nothing"]).status.code(), Some(2));
}

#[test]
fn configurations_are_validated_without_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = output(&["validate", "configs/quickstart.toml"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert_eq!(text(&good.stdout), "configs/quickstart.toml: valid (grpo, 4096 rows, 60 steps of 32 prompts)\n");

    let rows = write("rows.jsonl", "{\"prompt\": \"1 + 1 =\", \"answer\": \"two\"}\n");
    let remote = "model = 'org/none-of-this'\noutput_dir = 'o'\n";
    let absent = write("absent.toml", &format!("{remote}train_file = 'data/math_tasks_train.jsonl'\n"));
    let bad_rows = write("bad_rows.toml", &format!("{remote}train_file = '{rows}'\n"));
    let bad_key = write("bad_key.toml", &format!("{remote}train_flie = 'x'\n"));
    let cache = folder.path().join("cache");
    let run = |args: &[&str]| candlewick(&[&["validate"], args].concat()).env("HF_HUB_CACHE", &cache).output().unwrap();
    let told = run(&[&absent]);
    assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));
    assert!(text(&told.stdout).contains("org/none-of-this was not looked at: it is not on this machine"));
    // What is on this machine is looked at all the same.
    let bad = run(&[&absent, &bad_rows, &bad_key]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(text(&bad.stderr).contains("does not end in an integer: `two`"), "{}", text(&bad.stderr));
    assert!(text(&bad.stderr).contains("did you mean `train_file`?"), "{}", text(&bad.stderr));
    let json: serde_json::Value = serde_json::from_slice(&run(&[&absent, &bad_rows, "--json"]).stdout).unwrap();
    assert_eq!((&json[0]["valid"], &json[1]["valid"], &json[1]["exit_code"]), (&true.into(), &false.into(), &3.into()));
    // A run that pushes is checked as it will be, without the network.
    let quickstart = std::fs::read_to_string("configs/quickstart.toml").unwrap();
    let push = write("push.toml", &format!("push_to_hub = true\n{quickstart}"));
    let pushed = run(&[&push]);
    assert_eq!(pushed.status.code(), Some(0), "{}", text(&pushed.stderr));
    let offline = write("offline.toml", &format!("push_to_hub = true\noffline = true\n{quickstart}"));
    assert_eq!(run(&[&offline]).status.code(), Some(2));

    // Other parts that may be elsewhere: the start of a reward model (whose rows are pairs), the base of an adapter, and
    // the model of a reward.
    let pairs = write("pairs.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n");
    let ranked = format!("{remote}algorithm = 'reward'\ntrain_file = '{pairs}'\neval_file = '{pairs}'\n");
    std::fs::create_dir(folder.path().join("adapter")).unwrap();
    let adapter = "{\"peft_type\": \"LORA\", \"base_model_name_or_path\": \"org/no-base\"}";
    let adapter = write("adapter/adapter_config.json", adapter).replace("/adapter_config.json", "");
    let rows = "output_dir = 'o'\ntrain_file = 'data/math_tasks_train.jsonl'\n";
    let adapted = format!("model = '{adapter}'\n{rows}lora = {{}}\n");
    let scored = format!("model = 'data/starter'\n{rows}[[rewards]]\nname = 'model'\nmodel = 'org/no-judge'\n");
    for (config, absent) in [(ranked, "org/none-of-this"), (adapted, "org/no-base"), (scored, "org/no-judge")] {
        let told = run(&[&write("some.toml", &config)]);
        assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));
        assert!(text(&told.stdout).contains(&format!("{absent} was not looked at")), "{}", text(&told.stdout));
    }
    assert!(!cache.exists(), "nothing is fetched");
}

#[test]
fn the_first_rows_of_a_run_are_shown() {
    let args = ["data", "preview", "configs/quickstart.toml", "--rows", "2"];
    let shown = output(&args);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    insta::assert_snapshot!("preview_of_the_quickstart", text(&shown.stdout));
    let json: serde_json::Value = serde_json::from_slice(&output(&[&args[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!((json["rows"].as_array().unwrap().len(), &json["num_rows"]), (2, &4096.into()));
    assert_eq!(json["rows"][0]["prompt_tokens"], json["rows"][0]["prompt_ids"].as_array().unwrap().len());
}
