//! Wrong configurations and the messages they give; right ones and what comes of them.

use candlewick::config::{
    Algorithm, ArchitectureConfig, Layers, Override, Place, RunConfig, TokenizerKind, reference_page,
};
use candlewick::error::{Diagnose, Exit};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Layers over one file with this text. The folder lives as long as the test needs the file.
fn layers(text: &str) -> (tempfile::TempDir, Layers) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).expect("a temporary file");
    let layers = Layers::from_files([path]);
    (folder, layers)
}

/// The message of a configuration that must not resolve, with the file called `run.toml`.
fn message(folder: &Path, layers: &Layers) -> String {
    let error = layers.resolve().expect_err("this configuration is wrong");
    assert_eq!(error.exit(), Exit::Usage);
    assert!(error.hint().is_some());
    error.to_string().replace(&format!("{}/", folder.display()), "")
}

const COMPLETE: &str = "model = \"m\"\ntrain_file = \"t.jsonl\"\n";

/// A table of a judge with what it needs but for the reading of the score, and these further lines.
macro_rules! judge {
    ($lines:literal) => {
        concat!(
            "[[rewards]]\nname = \"judge\"\nbase_url = \"http://localhost:8000/v1\"\njudge_model = \"m\"\n",
            "prompt_template = \"{completion}\"\n",
            $lines,
            "\n"
        )
    };
}

/// Each case: its name, and the file beside the two settings that are always needed.
const WRONG: &[(&str, &str)] = &[
    ("unknown_key", "learnig_rate = 1e-6\n"),
    ("unknown_key_like_nothing", "xyzzy = 1\n"),
    ("foreign_name", "kl_coeff = 0.1\n"),
    (
        "foreign_names",
        "group_size = 4\nnum_generations_per_prompt = 4\nclip_range = 0.2\nmax_new_tokens = 8\n\
      num_train_steps = 9\neval_every = 1\nsave_every = 1\nnum_epochs = 1\nbatch_size = 4\nuse_wandb = true\n\
      wandb_project = \"p\"\nwandb_run_name = \"r\"\nlr = 1\nresume_from_checkpoint = true\n\
      per_device_train_batch_size = 8\noptim = \"adamw\"\nwarmup_ratio = 0.1\n",
    ),
    ("section", "[grpo]\nbeta = 0.1\n"),
    ("wrong_type_number", "learning_rate = \"fast\"\n"),
    ("wrong_type_whole_number", "num_generations = -3\nmax_steps = 1e3\nsave_steps = 2.5\n"),
    ("wrong_type_bool", "shuffle = \"yes\"\n"),
    ("wrong_type_string", "output_dir = 3\n"),
    ("wrong_type_list", "stop = \"a\"\n"),
    ("wrong_type_in_list", "stop = [\"a\", 3]\n"),
    ("wrong_type_table", "chat_template_kwargs = 3\n"),
    ("wrong_cap", "loss_type = \"cispo\"\nepsilon_high = 0.3\n"),
    ("wrong_word", "loss_type = \"dapoo\"\nalgorithm = \"ppo\"\ndtype = 16\n"),
    ("several_lines", "system_prompt = \"\"\"\na\n\"\"\"\nstop = '''\nx'''\n"),
    ("reward_is_no_list", "[rewards]\nname = \"last_integer\"\n"),
    ("reward_keys", "[[rewards]]\nname = \"a\"\nweigth = 1\nweight = \"x\"\n\n[[rewards]]\nnmae = \"b\"\n"),
    ("reward_values", "[[rewards]]\nweight = nan\ncorrect_reward = inf\n"),
    ("reward_weights", "[[rewards]]\nweight = 0\n"),
    ("no_rewards", "rewards = []\n"),
    ("reward_twice", "[[rewards]]\nname = \"last_integer\"\n\n[[rewards]]\nname = \"last_integer\"\nweight = 2.0\n"),
    (
        "reward_names",
        "[[rewards]]\nname = \"last_intger\"\n\n[[rewards]]\nname = \"style\"\n\n[[rewards]]\nlabel = \" \"\n\n\
      [[rewards]]\nname = \"uppercase\"\nlabel = \"last_intger\"\n",
    ),
    (
        "reward_keys_of_others",
        "[[rewards]]\nname = \"uppercase\"\nletter = \"e\"\nwrong_reward = -1\n\n\
      [[rewards]]\nname = \"regex\"\nletter = \"e\"\n\n[[rewards]]\nname = \"letter_count\"\nletter = \"ee\"\n\n\
      [[rewards]]\nname = \"soft_overlong\"\n",
    ),
    (
        "reward_keys_out_of_range",
        "max_completion_length = 8\n[[rewards]]\nname = \"format\"\npattern = \"[0-9\"\n\n\
      [[rewards]]\nname = \"repetition_penalty\"\nngram_size = 0\nmax_penalty = nan\n\n\
      [[rewards]]\nname = \"repetition_penalty\"\nlabel = \"second\"\nmax_penalty = 0.5\n\n\
      [[rewards]]\nname = \"soft_overlong\"\nsoft_punish_cache = 9\n",
    ),
    (
        "reward_command",
        "[[rewards]]\nname = \"command\"\n\n[[rewards]]\nname = \"command\"\nlabel = \"empty\"\ncommand = []\n\n\
      [[rewards]]\nname = \"command\"\nlabel = \"late\"\ncommand = [\"x\"]\ntimeout_secs = 0\nletter = \"e\"\n",
    ),
    ("reward_command_types", "[[rewards]]\nname = \"command\"\ncommand = \"python3 grade.py\"\nmax_restarts = -1\n"),
    (
        "reward_judge",
        "[[rewards]]\nname = \"judge\"\n\n\
      [[rewards]]\nname = \"judge\"\nlabel = \"address\"\nbase_url = \"localhost:8000\"\n\n\
      [[rewards]]\nname = \"judge\"\nlabel = \"whole\"\nbase_url = \"http://localhost/v1/chat/completions\"\n\n\
      [[rewards]]\nname = \"judge\"\nlabel = \"password\"\nbase_url = \"http://me:secret@localhost/v1\"\n",
    ),
    ("reward_judge_key", judge!("score_key = \"score\"\napi_key_env = \"sk-0123456789\"")),
    ("reward_judge_group", judge!("score_pattern = '[0-9]+'")),
    ("reward_judge_pattern", judge!("score_pattern = '('")),
    ("reward_judge_scores", judge!("score_pattern = '([0-9]+)'\nscore_key = \"score\"")),
    ("reward_judge_no_score", judge!("concurrency = 0")),
    ("reward_judge_scale", judge!("score_key = \"score\"\nmin_score = 5\nmax_score = 1\ntemperature = inf")),
    ("reward_judge_half_scale", judge!("score_key = \"score\"\nmax_score = 1")),
    ("reward_judge_temperature", judge!("score_key = \"score\"\ntemperature = -1")),
    ("reward_judge_concurrency", judge!("score_key = \"score\"\nconcurrency = 1000\non_failure = \"skip\"")),
    (
        "reward_judge_blind",
        "[[rewards]]\nname = \"judge\"\nbase_url = \"http://localhost/v1\"\njudge_model = \"m\"\n\
      prompt_template = \"{prompt}\"\nscore_key = \"score\"\n",
    ),
    ("reward_types", "[[rewards]]\nname = \"letter_count\"\nletter = 3\nnormalize = 1\nngram_size = -1\n"),
    ("grader_without_rewards", "algorithm = \"sft\"\nrewards = []\neval_grader = \"reward\"\n"),
    ("wrong_grader", "eval_grader = \"exact-match\"\n"),
    ("syntax_unclosed", "stop = [\"a\"\nseed = 3\n"),
    ("syntax_yaml", "beta: 0.1\nseed: 3\nshuffle = true\n"),
    ("syntax_python", "shuffle = True\neval_file = None\nbeta = .5\ndevice = cpu\n"),
    ("syntax_duplicate", "seed = 1\nseed = 2\n"),
    ("syntax_string", "run_name = \"abc\nseed = 2\n"),
    (
        "range_zero",
        "num_generations = 0\nmax_completion_length = 0\nprompts_per_step = 0\nmax_steps = 0\n\
      logging_steps = 0\nthreads = 0\nnum_iterations = 0\n",
    ),
    (
        "range_float",
        "temperature = 0\ntop_p = 1.5\nmin_p = -0.1\nbeta = -1\nepsilon = 1\ngamma = 0\n\
      learning_rate = -1e-6\nadam_beta1 = 1.0\nmax_grad_norm = 0\nnum_train_epochs = 0.0\n",
    ),
    ("not_finite", "learning_rate = nan\nbeta = inf\nweight_decay = -inf\n"),
    ("group_of_one", "num_generations = 1\n"),
    ("group_of_one_rloo", "algorithm = \"rloo\"\nnum_generations = 1\n"),
    ("group_of_one_raft", "algorithm = \"raft\"\nnum_generations = 1\n"),
    ("group_of_one_reinforce", "algorithm = \"reinforce++\"\nnum_generations = 1\n"),
    ("group_of_one_dpo", "algorithm = \"dpo\"\ndpo_pairs = \"sampled\"\nnum_generations = 1\n"),
    ("dpo_ranges", "algorithm = \"dpo\"\nbeta = 0\nlabel_smoothing = 0.5\ndpo_loss_type = \"dpo\"\n"),
    ("dpo_without_beta", "algorithm = \"dpo\"\nbeta = 0.0\nlabel_smoothing = 0.5\n"),
    ("no_ratio", "importance_sampling_level = \"none\"\nepsilon = 0.1\ndelta = 2.0\nloss_type = \"cispo\"\n"),
    ("no_clip", "loss_type = \"sapo\"\nepsilon = 0.1\nepsilon_high = 0.3\ndelta = 2.0\n"),
    ("no_gate", "sapo_temperature_pos = 2.0\nsapo_temperature_neg = 0\n"),
    ("no_k3", "kl_estimator = \"k2\"\nuse_bias_correction_kl = true\n"),
    ("sequence_sum", "importance_sampling_level = \"sequence_sum\"\n"),
    ("objective_ranges", "top_entropy_quantile = 0\nentropy_coef = -0.1\n"),
    ("clip_bounds", "epsilon = 0.3\nepsilon_high = 0.2\ndelta = 1.1\n"),
    ("warmup", "warmup_steps = 100\nmax_steps = 50\n"),
    ("warmup_fraction", "warmup_steps = 2.5\n"),
    ("eval_without_file", "eval_steps = 10\neval_max_rows = 5\n"),
    ("tracker", "report_to = [\"mlflow\", \"none\", \"wandb\"]\npython = \"\"\n"),
    ("no_tracker", "report_to = [\"csv\"]\npython = \"python\"\nproject = \"p\"\nrun_name = \"r\"\n"),
    ("nothing_to_compare_with", "eval_on_start = false\n"),
    ("no_effect_sft", "algorithm = \"sft\"\nbeta = 0.1\nnum_generations = 1\n"),
    ("no_effect_grpo", "completion_only_loss = false\nraft_min_reward = 0.5\n"),
    (
        "no_effect_rloo",
        "algorithm = \"rloo\"\nloss_type = \"grpo\"\nkl_estimator = \"k1\"\nscale_rewards = \"none\"\n\
      importance_sampling_level = \"token\"\ndelta = 2.0\ngamma = 0.9\ntop_entropy_quantile = 0.5\n",
    ),
    ("no_groups", "algorithm = \"remax\"\ndynamic_sampling = true\n"),
    ("no_dynamic_sampling", "max_sampling_rounds = 3\nref_model_sync_steps = 5\nref_model_mixup_alpha = 0.5\n"),
    ("sampling_ranges", "dynamic_sampling = true\nmax_sampling_rounds = 0\n"),
    ("sync_ranges", "sync_ref_model = true\nref_model_mixup_alpha = 1.5\nref_model_sync_steps = 0\n"),
    ("sync_without_reference", "beta = 0\nsync_ref_model = true\nkl_estimator = \"k2\"\n"),
    ("no_effect_remax", "algorithm = \"remax\"\nscale_rewards = \"none\"\n"),
    ("no_effect_raft", "algorithm = \"raft\"\nbeta = 0.1\nepsilon = 0.1\nentropy_coef = 0.1\nraft_min_reward = inf\n"),
    (
        "no_effect_dpo",
        "algorithm = \"dpo\"\nnum_generations = 4\ntemperature = 0.7\nepsilon = 0.1\nloss_type = \"grpo\"\n\
      num_iterations = 2\ndpo_loss_type = \"ipo\"\nlabel_smoothing = 0.1\n\n[[rewards]]\nname = \"exact_match\"\n",
    ),
    (
        "no_effect_dpo_sampled",
        "algorithm = \"dpo\"\ndpo_pairs = \"sampled\"\nchosen_column = \"a\"\nrejected_column = \"b\"\n\
      mask_truncated_completions = true\nscale_rewards = \"none\"\ncompletion_column = \"c\"\n",
    ),
    (
        "no_effect_reward",
        "algorithm = \"reward\"\nnum_generations = 4\nstop = [\"a\"]\nbeta = 0.1\neval_grader = \"reward\"\n\
      label_smoothing = 0.1\n\n[[rewards]]\nname = \"exact_match\"\n",
    ),
    ("no_effect_of_centring", "algorithm = \"dpo\"\ncenter_rewards_coefficient = 0.01\n"),
    ("centring_range", "algorithm = \"reward\"\ncenter_rewards_coefficient = -1\n"),
    (
        "reward_models",
        "[[rewards]]\nname = \"model\"\n\n[[rewards]]\nname = \"model\"\nlabel = \"b\"\nmodel = \" \"\n\n\
      [[rewards]]\nname = \"uppercase\"\nmodel = \"m\"\nrevision = \"main\"\n",
    ),
    ("resume_is_a_config", "resume = \"configs/a.toml\"\n"),
    (
        "several_at_once",
        "kl_coeff = 0.1\nlearning_rate = \"fast\"\ntop_p = 1.5\nepsilon_high = 0.1\nloss_type = \"dap\"\n",
    ),
];

#[test]
fn each_wrong_file_gives_its_message() {
    let mut all = String::new();
    for (name, text) in WRONG {
        let (folder, layers) = layers(&format!("{COMPLETE}{text}"));
        writeln!(all, "======== {name}\n{}\n", message(folder.path(), &layers)).unwrap();
    }
    insta::assert_snapshot!(all);
}

/// Each case: its name, and the whole file.
const WRONG_PRETRAINING: &[(&str, &str)] = &[
    ("nothing_set", "algorithm = \"pretrain\"\n"),
    (
        "model_and_architecture",
        "model = \"m\"\nalgorithm = \"sft\"\ntrain_file = \"t\"\n\n[architecture]\ntokenizer = \"char\"\n",
    ),
    ("no_tokenizer", "algorithm = \"pretrain\"\ntrain_file = \"t\"\n\n[architecture]\nhidden_size = 64\n"),
    (
        "heads",
        "algorithm = \"pretrain\"\ntrain_file = \"t\"\n\n[architecture]\ntokenizer = \"byte\"\nhidden_size = 100\n\
      num_attention_heads = 6\nnum_key_value_heads = 4\n",
    ),
    (
        "odd_heads",
        "algorithm = \"pretrain\"\ntrain_file = \"t\"\n\n[architecture]\ntokenizer = \"byte\"\nhidden_size = 12\n",
    ),
    (
        "zeros",
        "algorithm = \"pretrain\"\ntrain_file = \"t\"\n\n[architecture]\ntokenizer = \"byte\"\nhidden_size = 0\n\
      num_key_value_heads = 0\nrope_theta = 0\n",
    ),
    (
        "keys_and_types",
        "algorithm = \"pretrain\"\ntrain_file = \"t\"\n\n[architecture]\ntokenizer = \"bpe\"\nmodel_type = \"gpt2\"\n\
      hidden = 64\nvocab_size = 5\nhidden_size = \"64\"\ntie_word_embeddings = 1\n",
    ),
    ("no_table", "algorithm = \"pretrain\"\ntrain_file = \"t\"\narchitecture = \"llama\"\nn_embd = 64\n"),
    ("grpo", "train_file = \"t\"\n\n[architecture]\ntokenizer = \"byte\"\n"),
    (
        "weights",
        "algorithm = \"sft\"\ntrain_file = \"t\"\ninit = \"pretrained\"\nrevision = \"main\"\n\n[architecture]\n\
      tokenizer = \"byte\"\n",
    ),
    (
        "template",
        "algorithm = \"sft\"\ntrain_file = \"t\"\nsystem_prompt = \"Be brief.\"\n\n[architecture]\ntokenizer = \"char\"\n",
    ),
    (
        "block_size",
        "algorithm = \"pretrain\"\ntrain_file = \"t\"\nblock_size = 65\n\n[architecture]\ntokenizer = \"char\"\n\
      max_position_embeddings = 64\n",
    ),
    (
        "ranges",
        "algorithm = \"pretrain\"\nmodel = \"m\"\ntrain_file = \"t\"\nblock_size = 0\nvalidation_fraction = 1.0\n",
    ),
    (
        "nothing_to_evaluate_on",
        "algorithm = \"pretrain\"\nmodel = \"m\"\ntrain_file = \"t\"\nvalidation_fraction = 0\neval_steps = 10\n\
      eval_on_start = true\n",
    ),
    (
        "not_read",
        "algorithm = \"pretrain\"\nmodel = \"m\"\ntrain_file = \"t\"\neval_file = \"e\"\neval_max_rows = 3\n\
      num_generations = 1\nbeta = 0.1\ncompletion_only_loss = true\nprompt_column = \"q\"\nmax_prompt_length = 9\n\
      \n[[rewards]]\nname = \"last_integer\"\n",
    ),
    (
        "not_read_by_others",
        "algorithm = \"sft\"\nmodel = \"m\"\ntrain_file = \"t\"\nblock_size = 9\nsample_prompt = \"x\"\n",
    ),
];

#[test]
fn each_wrong_file_of_pretraining_gives_its_message() {
    let mut all = String::new();
    for (name, text) in WRONG_PRETRAINING {
        let (folder, layers) = layers(text);
        writeln!(all, "======== {name}\n{}\n", message(folder.path(), &layers)).unwrap();
    }
    insta::assert_snapshot!(all);
}

/// Each case: its name, and what stands beside the model.
const WRONG_DATA: &[(&str, &str)] = &[
    ("two_sources", "train_file = \"t\"\ndataset_name = \"org/name\"\n"),
    ("mixture_and_data_set", "dataset_name = \"org/name\"\n\n[[train_mix]]\nfile = \"t\"\n"),
    ("mixture_and_file", "train_file = \"t\"\n\n[[train_mix]]\nfile = \"t\"\n"),
    ("no_data_set", "train_file = \"t\"\ndataset_config = \"main\"\ndataset_test_split = \"test\"\n"),
    ("two_evaluations", "dataset_name = \"org/name\"\neval_file = \"e\"\ndataset_test_split = \"test\"\n"),
    ("splits", "dataset_name = \"org/name\"\ndataset_train_split = \"train[:5\"\ndataset_test_split = \"test[x:]\"\n"),
    (
        "templates",
        "train_file = \"t\"\nprompt_template = \"Question:\"\nanswer_regex = \"[0-9]+\"\nprompt_column = \"q\"\n",
    ),
    ("patterns", "train_file = \"t\"\nprompt_template = \"{a\"\nanswer_regex = \"(a)(b)\"\n"),
    ("no_pattern", "train_file = \"t\"\nanswer_regex = \"(\"\n"),
    (
        "sources",
        "[[train_mix]]\nfile = \"t\"\nweight = 0\n\n[[train_mix]]\nweight = -1\n\n[[train_mix]]\nfile = \"t\"\n\
      dataset_name = \"d\"\n\n[[train_mix]]\nfile = \"t\"\ndataset_split = \"train\"\nweight = inf\nprompt_template = \"{\"\n\
      prompt_column = \"q\"\n\n[[train_mix]]\nfile = \"t\"\nanswer_regex = \"x\"\n",
    ),
    ("key_of_a_source", "[[train_mix]]\nfile = \"t\"\nwieght = 2\n"),
    ("foreign", "dataset = \"org/name\"\n\n[[datasets]]\npath = \"x\"\n"),
    ("a_text", "algorithm = \"pretrain\"\ndataset_name = \"org/name\"\n"),
];

#[test]
fn each_wrong_source_of_data_gives_its_message() {
    let mut all = String::new();
    for (name, text) in WRONG_DATA {
        let (folder, layers) = layers(&format!("model = \"m\"\n{text}"));
        writeln!(all, "======== {name}\n{}\n", message(folder.path(), &layers)).unwrap();
    }
    insta::assert_snapshot!(all);
}

/// The table can be set key by key, and later layers change single keys of it.
#[test]
fn an_architecture_is_merged_key_by_key() {
    let text = "algorithm = \"pretrain\"\ntrain_file = \"t\"\nblock_size = 32\n\n[architecture]\nhidden_size = 64\n";
    let (_folder, mut layers) = layers(text);
    layers.overrides =
        ["architecture.tokenizer=char", "architecture.num_key_value_heads=2"].map(Override::parse).into();
    let config = layers.resolve().unwrap_or_else(|error| panic!("{error}")).config;
    let expected = ArchitectureConfig {
        hidden_size: 64,
        tokenizer: Some(TokenizerKind::Char),
        num_key_value_heads: Some(2),
        ..ArchitectureConfig::default()
    };
    assert_eq!(config.architecture, Some(expected));
}

#[test]
fn wrong_values_from_elsewhere_give_their_source() {
    let (folder, mut layers) = layers("top_p = 2\nresume = \"auto\"\n");
    layers.files.push(folder.path().join("nowhere.toml"));
    layers.files.push(folder.path().to_owned());
    std::fs::write(folder.path().join("latin1.toml"), b"run_name = \"\xe9\"").unwrap();
    layers.files.push(folder.path().join("latin1.toml"));
    layers.env =
        [("CANDLEWICK_BETA", "-1"), ("CANDLEWICK_SEDE", "3"), ("CANDLEWICK_SEED", "x"), ("CANDLEWICK_MODEL", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    layers.overrides =
        ["lr=1e-6", "epsilon", "=3", "temperature=hot", "a b=1", "seed = 1\nbeta = 2", "rewards.0.weight=2"]
            .map(Override::parse)
            .into();
    let folder_name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
    let text = message(folder.path(), &layers).replace(&folder.path().display().to_string(), "FOLDER");
    insta::assert_snapshot!(text.replace(&folder_name, "FOLDER"));
}

#[test]
fn a_key_or_a_password_is_not_shown_wherever_it_was_given() {
    let judge = |user: &str, more: &str| {
        let url = format!("base_url = \"http://{user}localhost/v1\"");
        format!("[{{ name = \"judge\", judge_model = \"m\", prompt_template = \"{{completion}}\", {url}, {more} }}]")
    };
    for rewards in [
        judge("me:canary@", "score_key = \"s\""),
        judge("", "score_key = \"s\", api_key_env = \"sk-canary\""),
        judge("", "score_key = \"s\", api_key_env = [\"sk-canary\"]"),
        judge("", "score_key = \"s\", api_key = 'sk-canary'"),
        judge("", "temperature = -1, api_key_env = \"sk-canary\""),
        judge("", "score_key = \"s\"").replace("http://localhost", "me:canary@localhost"),
    ] {
        let (folder, mut layers) = layers(&format!("{COMPLETE}rewards = {rewards}\n"));
        let is_hidden = |layers: &Layers, place: &str| {
            let text = message(folder.path(), layers);
            assert!(text.contains(place) && !text.contains("canary"), "{text}");
        };
        is_hidden(&layers, " --> run.toml:3:");
        std::fs::write(&layers.files[0], COMPLETE).unwrap();
        layers.env = vec![("CANDLEWICK_REWARDS".to_owned(), rewards.clone())];
        is_hidden(&layers, " --> environment variable CANDLEWICK_REWARDS");
        layers.env.clear();
        layers.overrides = vec![Override::parse(&format!("rewards={rewards}"))];
        is_hidden(&layers, " --> --set rewards");
    }
    // What is no secret is shown beside a fault.
    let (folder, good) = layers(&format!("{COMPLETE}rewards = {}\n", judge("", "api_key_env = \"OPENAI_API_KEY\"")));
    assert!(message(folder.path(), &good).contains("\n3 | "));
}

#[test]
fn nothing_set_is_an_error_that_names_what_is_needed() {
    insta::assert_snapshot!(message(Path::new("/nowhere"), &Layers::default()));
}

#[test]
fn data_files_must_exist_where_a_run_needs_them() {
    let (folder, mut layers) =
        layers("model = \"m\"\ntrain_file = \"/nowhere/t.jsonl\"\neval_file = \"/nowhere/e.jsonl\"\n");
    layers.resolve().unwrap();
    layers.must_find_data = true;
    insta::assert_snapshot!(message(folder.path(), &layers));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let (folder, mut layers) = layers("\"\\u001b[31m\" = 1\n");
    layers.env = vec![("CANDLEWICK_X".to_owned(), "\u{1b}[2J".to_owned())];
    let text = message(folder.path(), &layers);
    assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
}

#[test]
fn later_layers_win_and_every_value_knows_its_source() {
    let (folder, mut layers) =
        layers(&format!("{COMPLETE}beta = 0.1\ntemperature = 0.5\ngamma = 0.5\nseed = 1\nreport_to = [\"wandb\"]\n"));
    let second = folder.path().join("second.toml");
    std::fs::write(&second, "\ntemperature = 0.6\ngamma = 0.6\nseed = 2\nchat_template_kwargs = { a = 1 }\n").unwrap();
    layers.files.push(second.clone());
    layers.env =
        [("CANDLEWICK_GAMMA", "7e-1"), ("CANDLEWICK_SEED", "18446744073709551615"), ("CANDLEWICK_RUN_NAME", "42")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    layers.overrides =
        ["gamma=.8", "chat_template_kwargs.b=false", "stop=[\"x\", 'y']", "eval_file=a=b"].map(Override::parse).into();
    let resolved = layers.resolve().unwrap();

    let expected = RunConfig {
        model: "m".into(),
        train_file: "t.jsonl".into(),
        beta: Some(0.1),
        temperature: 0.6,
        gamma: 0.8,
        seed: u64::MAX,
        run_name: Some("42".into()),
        report_to: vec!["wandb".into()],
        stop: vec!["x".into(), "y".into()],
        eval_file: Some("a=b".into()),
        chat_template_kwargs: [("a".to_owned(), 1.into()), ("b".to_owned(), false.into())].into_iter().collect(),
        ..RunConfig::default()
    };
    assert_eq!(resolved.config, expected);
    for (key, source) in [
        ("beta", format!("{}:3", layers.files[0].display())),
        ("temperature", format!("{}:2", second.display())),
        ("seed", "environment variable CANDLEWICK_SEED=18446744073709551615".to_owned()),
        ("gamma", "--set gamma=.8".to_owned()),
        ("top_p", "default".to_owned()),
    ] {
        assert_eq!(resolved.place(key).to_string(), source);
        assert_eq!(resolved.to_json()[key]["source"], source);
    }
    assert_eq!(*resolved.place("top_p"), Place::Default);
}

#[test]
fn what_is_shown_reads_back_to_the_same_settings() {
    let tricky = "a \"quoted\" \\ line\n'''and\u{7f} another";
    let config = RunConfig {
        model: "m".into(),
        train_file: "t".into(),
        seed: u64::MAX,
        system_prompt: Some(tricky.into()),
        stop: vec![tricky.into(), String::new()],
        learning_rate: Some(3.3e-7),
        chat_template_kwargs: serde_json::json!({"a b": {"c": [1, 2.5, "x"]}, "t": true}).as_object().unwrap().clone(),
        ..RunConfig::default()
    };
    let sft = RunConfig { algorithm: Algorithm::Sft, completion_only_loss: false, ..config.clone() };
    let pretrain = RunConfig {
        algorithm: Algorithm::Pretrain,
        architecture: Some(ArchitectureConfig {
            tokenizer: Some(TokenizerKind::Byte),
            rope_theta: 1e6,
            ..ArchitectureConfig::default()
        }),
        train_file: "t".into(),
        sample_prompt: tricky.into(),
        validation_fraction: 0.25,
        ..RunConfig::default()
    };
    for config in [config, sft, pretrain] {
        let (_folder, written) = layers(&config.to_toml());
        let resolved = written.resolve().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(resolved.config, config);
        let (_folder, shown) = layers(&resolved.to_toml());
        let shown = shown.resolve().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(shown.config, config);
    }
}

#[test]
fn errors_are_found_within_50_ms() {
    let mut text = String::from(COMPLETE);
    for (_, wrong) in WRONG.iter().filter(|(name, _)| !name.starts_with("syntax") && !name.starts_with("reward")) {
        text.push_str(wrong);
    }
    // Keys occur more than once now, which makes syntax errors as well.
    let (_folder, layers) = layers(&text);
    let fastest = (0..5)
        .map(|_| {
            let start = Instant::now();
            layers.resolve().unwrap_err();
            start.elapsed()
        })
        .min();
    assert!(fastest < Some(Duration::from_millis(50)), "{fastest:?}");
}

#[test]
fn every_recipe_of_the_repository_loads() {
    let (mut folders, mut recipes) = (vec![PathBuf::from("configs")], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                recipes.push(path);
            }
        }
    }
    assert!(recipes.len() >= 14);
    for path in recipes {
        if let Err(error) = Layers::from_files([&path]).resolve() {
            panic!("{error}");
        }
    }
}

#[test]
fn the_reference_page_is_up_to_date() {
    let page = std::fs::read_to_string("configs/REFERENCE.md").unwrap_or_default();
    let hint = "run `cargo run --release -- config reference > configs/REFERENCE.md`";
    assert!(page == reference_page(), "configs/REFERENCE.md is not what the comments say: {hint}");
}
