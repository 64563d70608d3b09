//! The model card: a `README.md` that says what a trained model is, for people and for the Hub.
//!
//! A pure function from facts to text. The head is YAML with the keys that the Hub reads; every value is written as a
//! JSON string, which is valid YAML whatever it holds.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

/// What stands in a card for the id under which the model can be loaded, which is known once it is pushed.
const ID_PLACEHOLDER: &str = "PATH_OR_ID";
/// The tag that tells the cards of this program from others.
const OWN_TAG: &str = "candlewick";

/// What a card tells. Empty texts, empty lists and `None` leave their part out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CardFacts {
    /// Title; usually the name of the output directory.
    pub model_name: String,
    /// Hub id of the base model; not a local path, which means nothing to others.
    pub base_model: Option<String>,
    /// Whether the folder holds an adapter (PEFT) to the base model instead of a whole model.
    pub is_adapter: bool,
    /// The word of the setting, as `grpo`.
    pub algorithm: String,
    /// Hub ids or file names of the training data; the Hub links to the ids.
    pub datasets: Vec<String>,
    /// Licence id of the base card, as `apache-2.0`.
    pub license: Option<String>,
    /// Whether prompts go through a chat template.
    pub is_chat: bool,
    /// Optimizer steps done.
    pub steps: u64,
    /// Key settings by name.
    pub settings: Vec<(String, String)>,
    pub results: Vec<CardResult>,
    /// Programs and libraries with their versions.
    pub versions: Vec<(String, String)>,
}

/// One measured value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CardResult {
    /// As `accuracy`.
    pub metric: String,
    /// What it was measured on.
    pub dataset: String,
    /// Before training.
    pub before: Option<f64>,
    /// After training.
    pub after: f64,
}

/// The algorithm whose models score texts instead of writing them.
const REWARD: &str = "reward";

/// The text of the card.
#[must_use]
pub fn model_card(facts: &CardFacts) -> String {
    let mut card = String::from("---\n");
    head(&mut card, facts);
    card.push_str("---\n\n");
    body(&mut card, facts);
    card
}

/// A card of this program with the id of the model in place of what stands for it; `None` for other cards, and for
/// those that name it already.
#[must_use]
pub fn card_with_id(card: &str, id: &str) -> Option<String> {
    let head = card.strip_prefix("---\n")?.split("\n---").next()?;
    let is_own = head.lines().any(|line| line == format!("- {}", Value::from(OWN_TAG)));
    (is_own && card.contains(ID_PLACEHOLDER)).then(|| card.replace(ID_PLACEHOLDER, id))
}

/// The licence id in the head of a model folder's `README.md`, if it has one.
#[must_use]
pub fn base_license(folder: &Path) -> Option<String> {
    let card = std::fs::read_to_string(folder.join("README.md")).ok()?;
    let head = card.strip_prefix("---")?.split("\n---").next()?.to_owned();
    let value = head.lines().find_map(|line| line.strip_prefix("license:"))?.trim();
    let value = value.trim_matches(['"', '\'']);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+');
    (!value.is_empty() && value.chars().all(plain)).then(|| value.to_owned())
}

fn head(card: &mut String, facts: &CardFacts) {
    let quote = |text: &str| Value::from(text).to_string();
    let mut line = |text: String| {
        card.push_str(&text);
        card.push('\n');
    };
    if let Some(base) = &facts.base_model {
        line(format!("base_model: {}", quote(base)));
    }
    // Only what has an owner can be a data set of the Hub.
    let mut datasets = facts.datasets.iter().filter(|dataset| dataset.contains('/')).peekable();
    if datasets.peek().is_some() {
        line("datasets:".into());
        datasets.for_each(|dataset| line(format!("- {}", quote(dataset))));
    }
    line(format!("library_name: {}", if facts.is_adapter { "peft" } else { "transformers" }));
    if let Some(license) = &facts.license {
        line(format!("license: {}", quote(license)));
    }
    line(format!("model_name: {}", quote(&facts.model_name)));
    let task = if facts.algorithm == REWARD { "text-classification" } else { "text-generation" };
    line(format!("pipeline_tag: {task}"));
    line("tags:".into());
    let lora = if facts.is_adapter { "lora" } else { "" };
    for tag in ["generated_from_trainer", &facts.algorithm, lora, OWN_TAG].iter().filter(|tag| !tag.is_empty()) {
        line(format!("- {}", quote(tag)));
    }
    let measured: Vec<_> = facts.results.iter().filter(|result| result.after.is_finite()).collect();
    if !measured.is_empty() {
        line("model-index:".into());
        line(format!("- name: {}", quote(&facts.model_name)));
        line("  results:".into());
        for result in measured {
            line("  - task:".into());
            line(format!("      type: {task}"));
            line("    dataset:".into());
            line(format!("      name: {0}\n      type: {0}", quote(&result.dataset)));
            line("    metrics:".into());
            line(format!("    - type: {}\n      value: {}", quote(&result.metric), result.after));
        }
    }
}

fn body(card: &mut String, facts: &CardFacts) {
    let link = |base: &String| format!("[{base}](https://huggingface.co/{base})");
    let what = match (&facts.base_model, facts.is_adapter) {
        (Some(base), false) => format!("a fine-tuned version of {}", link(base)),
        (Some(base), true) => format!("a LoRA adapter for {}", link(base)),
        (None, false) if facts.algorithm == REWARD => "a reward model".to_owned(),
        (None, false) => "a language model".to_owned(),
        (None, true) => "a LoRA adapter".to_owned(),
    };
    let data = if facts.datasets.is_empty() { String::new() } else { format!(" on {}", facts.datasets.join(", ")) };
    // Writing to a String cannot fail.
    let _ = write!(
        card,
        "# {name}\n\nThis model is {what}, trained{data} with candlewick.\n\n## Quick start\n\n```python\n{code}```\n",
        name = facts.model_name,
        code = quick_start(facts),
    );
    if !facts.algorithm.is_empty() {
        let (method, steps) = (method(&facts.algorithm), facts.steps);
        let _ = write!(card, "\n## Training procedure\n\n{method} {steps} optimizer steps were done.\n");
    }
    if !facts.settings.is_empty() {
        card.push_str("\n| setting | value |\n|---|---|\n");
        for (name, value) in &facts.settings {
            let _ = writeln!(card, "| {} | {} |", cell(name), cell(value));
        }
    }
    if !facts.results.is_empty() {
        card.push_str("\n## Results\n\n| metric | data | before | after |\n|---|---|---|---|\n");
        for result in &facts.results {
            let before = result.before.map_or_else(|| "-".to_owned(), |before| format!("{before:.4}"));
            let (metric, dataset) = (cell(&result.metric), cell(&result.dataset));
            let _ = writeln!(card, "| {metric} | {dataset} | {before} | {:.4} |", result.after);
        }
    }
    if !facts.versions.is_empty() {
        card.push_str("\n## Versions\n\n");
        for (name, version) in &facts.versions {
            let _ = writeln!(card, "- {name}: {version}");
        }
    }
}

/// Lines of Python that load the model and use it.
fn quick_start(facts: &CardFacts) -> String {
    if facts.algorithm == REWARD {
        let turns = r#"[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]"#;
        let text = if facts.is_chat {
            format!("text = tokenizer.apply_chat_template({turns}, tokenize=False)")
        } else {
            "text = \"the prompt\" + \"the completion\"".to_owned()
        };
        return format!(
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{ID_PLACEHOLDER}\")\n\
             model = AutoModelForSequenceClassification.from_pretrained(\"{ID_PLACEHOLDER}\")\n\
             {text}\n\
             inputs = tokenizer(text, add_special_tokens=False, return_tensors=\"pt\")\n\
             print(model(**inputs).logits[0, 0].item())  # the higher, the better the completion\n"
        );
    }
    let input = if facts.is_chat { r#"[{"role": "user", "content": "..."}]"# } else { r#""...""# };
    let (import, model) = if facts.is_adapter {
        // The tokenizer's files are the base model's; a folder may come without them.
        let tokenizer = facts.base_model.as_deref().unwrap_or(ID_PLACEHOLDER);
        let load = format!(
            "model = AutoPeftModelForCausalLM.from_pretrained(\"{ID_PLACEHOLDER}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{tokenizer}\")\n\
             generator = pipeline(\"text-generation\", model=model, tokenizer=tokenizer)\n"
        );
        ("from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer, pipeline\n", load)
    } else {
        let load = format!("generator = pipeline(\"text-generation\", model=\"{ID_PLACEHOLDER}\")\n");
        ("from transformers import pipeline\n", load)
    };
    format!(
        "{import}\n{model}\
         print(generator({input}, max_new_tokens=128, return_full_text=False)[0][\"generated_text\"])\n"
    )
}

/// A sentence on the algorithm with its paper.
fn method(algorithm: &str) -> String {
    let (what, title, paper) = match algorithm {
        "grpo" => (
            "GRPO (group relative policy optimization)",
            "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
            "2402.03300",
        ),
        "rloo" => (
            "RLOO (REINFORCE leave-one-out)",
            "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
            "2402.14740",
        ),
        "remax" => (
            "ReMax",
            "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
            "2310.10505",
        ),
        "reinforce++" => (
            "REINFORCE++ with a group baseline",
            "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
            "2501.03262",
        ),
        "raft" => (
            "RAFT (reward ranked fine-tuning, best of n)",
            "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
            "2304.06767",
        ),
        "dpo" => (
            "DPO (direct preference optimization)",
            "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            "2305.18290",
        ),
        REWARD => (
            "the Bradley-Terry objective on pairs of completions",
            "Training language models to follow instructions with human feedback",
            "2203.02155",
        ),
        "sft" => return "Trained by supervised fine-tuning on given completions.".into(),
        "pretrain" => return "Trained to predict the next token of a text.".into(),
        other => return format!("Trained with {other}."),
    };
    format!("Trained with {what}, introduced in [{title}](https://huggingface.co/papers/{paper}) (arXiv:{paper}).")
}

/// A text that stays inside its table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_card() {
        let card = model_card(&CardFacts {
            model_name: "tiny-grpo".into(),
            base_model: Some("org/tiny".into()),
            is_adapter: false,
            algorithm: "grpo".into(),
            datasets: vec!["math_tasks_train.jsonl".into(), "org/sums".into()],
            license: Some("apache-2.0".into()),
            is_chat: true,
            steps: 40,
            settings: vec![("learning_rate".into(), "1e-6".into()), ("stop".into(), "a|b\nc".into())],
            results: vec![CardResult {
                metric: "accuracy".into(),
                dataset: "math_tasks_eval.jsonl".into(),
                before: Some(0.5),
                after: 0.96875,
            }],
            versions: vec![("candlewick".into(), "0.1.0".into())],
        });
        insta::assert_snapshot!(card);
    }

    #[test]
    fn a_card_without_facts_is_still_a_card() {
        let facts = CardFacts { model_name: "x: \"y\"".into(), algorithm: "sft".into(), ..CardFacts::default() };
        let card = model_card(&facts);
        assert!(card.starts_with("---\nlibrary_name: transformers\nmodel_name: \"x: \\\"y\\\"\"\n"), "{card}");
        assert!(!card.contains("Results") && !card.contains("model-index") && !card.contains("base_model"));
    }

    #[test]
    fn a_reward_model_is_used_as_a_classifier() {
        let facts = |is_chat| CardFacts { algorithm: "reward".into(), is_chat, ..CardFacts::default() };
        let card = model_card(&facts(false));
        assert!(card.contains("pipeline_tag: text-classification\n") && !card.contains("text-generation"), "{card}");
        assert!(
            card.contains("text = \"the prompt\" + \"the completion\"\n") && card.contains("arXiv:2203.02155"),
            "{card}"
        );
        assert!(model_card(&facts(true)).contains("text = tokenizer.apply_chat_template([{\"role\""), "{card}");
    }

    #[test]
    fn an_adapter_is_loaded_with_peft() {
        let facts = CardFacts {
            model_name: "a".into(),
            base_model: Some("org/b".into()),
            is_adapter: true,
            algorithm: "dpo".into(),
            ..CardFacts::default()
        };
        let card = model_card(&facts);
        assert!(card.contains("library_name: peft\n") && card.contains("- \"lora\"\n"), "{card}");
        assert!(card.contains("AutoPeftModelForCausalLM.from_pretrained(\"PATH_OR_ID\")"), "{card}");
    }

    #[test]
    fn the_id_is_filled_into_own_cards_only() {
        let own = model_card(&CardFacts::default());
        let named = card_with_id(&own, "org/name").unwrap();
        assert!(named.contains("model=\"org/name\"") && !named.contains(ID_PLACEHOLDER));
        assert_eq!(card_with_id(&named, "org/other"), None, "it has its id");
        for other in ["", "PATH_OR_ID", "---\ntags:\n- mine\n---\nPATH_OR_ID candlewick"] {
            assert_eq!(card_with_id(other, "org/name"), None);
        }
    }

    #[test]
    fn the_licence_of_the_base_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(base_license(folder.path()), None);
        for (text, expected) in [
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", Some("apache-2.0")),
            ("---\nlicense: \"mit\"\n---\n", Some("mit")),
            ("---\nlicense:\n---\nlicense: fake", None),
            ("# no head\nlicense: mit", None),
        ] {
            std::fs::write(folder.path().join("README.md"), text).unwrap();
            assert_eq!(base_license(folder.path()).as_deref(), expected, "{text}");
        }
    }
}
