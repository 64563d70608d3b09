//! Claims: chat templates render byte for byte as transformers renders them; they are looked for where transformers
//! looks; a broken or endless template is an error that names it; a prompt becomes the ids of its rendered text.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candlewick::error::Diagnose;
use candlewick::text::{
    ChatTemplate, Prompt, PromptRenderer, RenderOptions, SpecialTokens, TemplateSource, TextError, Tokenizer, eos_set,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat")
}

fn specials() -> SpecialTokens {
    SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")])
}

fn options(case: &Value) -> RenderOptions {
    let mut extra = case["options"].as_object().unwrap().clone();
    RenderOptions {
        add_generation_prompt: extra.remove("add_generation_prompt").unwrap().as_bool().unwrap(),
        tools: extra.remove("tools"),
        extra,
    }
}

#[test]
fn renders_equal_those_of_transformers() {
    let stored: Value = serde_json::from_str(&fs::read_to_string(fixtures().join("renders.json")).unwrap()).unwrap();
    let cases = stored["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 120);
    for case in cases {
        let path = fixtures().join(case["template"].as_str().unwrap());
        let template = ChatTemplate::load(&fixtures(), path.to_str()).unwrap().unwrap();
        let conversation = case["conversation"].as_str().unwrap();
        let messages = stored["conversations"][conversation].as_array().unwrap();
        let rendered = template.render(messages, &specials(), &options(case));
        let what = format!("{} / {conversation} / {}", path.display(), case["options"]);
        match case["error"].as_str() {
            None => assert_eq!(rendered.unwrap(), case["text"].as_str().unwrap(), "{what}"),
            Some(message) => match rendered {
                Err(TextError::TemplateRaised { reason, .. }) => assert_eq!(reason, message, "{what}"),
                other => panic!("{what}: expected `{message}`, got {other:?}"),
            },
        }
    }
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn render_text(template: &ChatTemplate) -> Result<String, TextError> {
    template.render(&[json!({"role": "user", "content": "x"})], &specials(), &RenderOptions::default())
}

#[test]
fn the_setting_comes_first_then_the_files_in_order() {
    let files = [
        ("chat_template.jinja", "jinja"),
        ("chat_template.json", r#"{"chat_template": "json"}"#),
        ("tokenizer_config.json", r#"{"chat_template": "config"}"#),
    ];
    for skip in 0..3 {
        let folder = folder(&files[skip..]);
        let template = ChatTemplate::load(folder.path(), None).unwrap().unwrap();
        assert_eq!(render_text(&template).unwrap(), ["jinja", "json", "config"][skip]);
        assert_eq!(*template.source(), TemplateSource::File(folder.path().join(files[skip].0)));
        let explicit = ChatTemplate::load(folder.path(), Some("{{ 'set' }}")).unwrap().unwrap();
        assert_eq!(render_text(&explicit).unwrap(), "set");
    }
    assert!(ChatTemplate::load(folder(&[("tokenizer_config.json", "{}")]).path(), None).unwrap().is_none());
}

#[test]
fn named_templates_are_chosen_by_tools() {
    let folder = folder(&[(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#,
    )]);
    let template = ChatTemplate::load(folder.path(), None).unwrap().unwrap();
    assert_eq!(render_text(&template).unwrap(), "plain");
    let with_tools = RenderOptions { tools: Some(json!([])), ..RenderOptions::default() };
    assert_eq!(template.render(&[], &specials(), &with_tools).unwrap(), "tools");
}

#[test]
fn broken_templates_are_told() {
    let messages = |template: &str| match ChatTemplate::from_text(template) {
        Err(error) => error.to_string(),
        Ok(template) => render_text(&template).unwrap_err().to_string(),
    };
    insta::assert_snapshot!(messages("{% if x %}\n{{ y"), @"the chat template in the setting `chat_template` does not parse at its line 2: syntax error: unexpected end of input, expected end of variable block");
    insta::assert_snapshot!(messages("a\n{{ messages[0].content.nothing.at_all }}"), @"the chat template in the setting `chat_template` failed at its line 2: undefined value");
    insta::assert_snapshot!(messages("{{ raise_exception('no system role') }}"), @"the chat template in the setting `chat_template` rejects these messages: no system role");
    insta::assert_snapshot!(messages("{{ undefined | tojson }}"), @"the chat template in the setting `chat_template` failed at its line 1: invalid operation: Object of type undefined is not JSON serializable");
    insta::assert_snapshot!(messages("{{ strftime_now('%!') }}"), @"the chat template in the setting `chat_template` failed at its line 1: invalid operation: strftime formatting failed: found unrecognized specifier directive `!`");
    insta::assert_snapshot!(messages("{{ messages | absent }}"), @"the chat template in the setting `chat_template` failed at its line 1: unknown filter: filter absent is unknown");
    let missing = ChatTemplate::load(Path::new("."), Some("no/such.jinja")).unwrap_err();
    insta::assert_snapshot!(missing, @"cannot read no/such.jinja: No such file or directory (os error 2)");
    let list = folder(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#)]);
    let error = ChatTemplate::load(list.path(), None).unwrap_err().to_string();
    assert!(error.ends_with(
        "`chat_template` must be a string, or a list of {name, template} with a `default`, but it is \
         [{\"name\":\"rag\",\"template\":\"\"}]"
    ));
}

#[test]
fn an_endless_template_is_stopped() {
    let started = Instant::now();
    for template in [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10**12 }}",
    ] {
        let error = render_text(&ChatTemplate::from_text(template).unwrap()).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// A character-level tokenizer with `<s>` in front and `</s>` behind, and a template of its own.
fn tokenizer_folder() -> tempfile::TempDir {
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2});
    for (i, c) in "abcdefghijklmnopqrstuvwxyz:| ".chars().enumerate() {
        vocab[c.to_string()] = json!(i + 3);
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                               "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    folder(&[
        ("tokenizer.json", &tokenizer.to_string()),
        ("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#),
        (
            "chat_template.jinja",
            "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content | trim }}{{ eos_token }}{% endfor %}\
             {% if add_generation_prompt %}assistant:{% endif %}",
        ),
        ("generation_config.json", r#"{"eos_token_id": [9, 2]}"#),
        ("config.json", r#"{"eos_token_id": 5}"#),
    ])
}

fn renderer(folder: &Path) -> PromptRenderer {
    PromptRenderer::new(Tokenizer::load(folder).unwrap(), ChatTemplate::load(folder, None).unwrap())
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

#[test]
fn plain_prompts_keep_bos_and_lose_eos() {
    let folder = tokenizer_folder();
    let renderer = renderer(folder.path());
    let rendered = renderer.render(&Prompt::Text("ab".into())).unwrap();
    assert_eq!((rendered.text.as_str(), rendered.ids), ("ab", vec![1, 3, 4]));
    // An EOS that the text itself ends in is the user's.
    assert_eq!(renderer.render(&Prompt::Text("ab</s>".into())).unwrap().ids, [1, 3, 4, 2, 2]);
    let (prompt, completion) = renderer.render_pair(&Prompt::Text("ab".into()), "c").unwrap();
    assert_eq!((prompt.ids, completion), (vec![1, 3, 4], vec![5, 2]));
}

#[test]
fn conversations_go_through_the_template_once() {
    let folder = tokenizer_folder();
    let renderer = renderer(folder.path());
    let decode = |ids: &[u32]| renderer.tokenizer().decode_with_special(ids).unwrap();
    let rendered = renderer.render(&Prompt::Messages(vec![user("hi")])).unwrap();
    assert_eq!(rendered.text, "<s>user:hi</s>assistant:");
    assert_eq!(decode(&rendered.ids), rendered.text, "no further special tokens");

    let open = vec![user("hi"), json!({"role": "assistant", "content": " well "})];
    assert_eq!(renderer.render(&Prompt::Messages(open)).unwrap().text, "<s>user:hi</s>assistant:well");

    let (prompt, completion) = renderer.render_pair(&Prompt::Messages(vec![user("hi")]), "yes").unwrap();
    assert_eq!((prompt.text.as_str(), decode(&completion).as_str()), ("<s>user:hi</s>assistant:", "yes</s>"));

    let system = renderer.clone().with_system_prompt(Some("be good".into()));
    let expected = "<s>system:be good</s>user:hi</s>assistant:";
    assert_eq!(system.render(&Prompt::Messages(vec![user("hi")])).unwrap().text, expected);
    assert_eq!(system.render(&Prompt::Text("hi".into())).unwrap().text, expected);
    let own = vec![json!({"role": "system", "content": "mine"}), user("hi")];
    assert_eq!(system.render(&Prompt::Messages(own)).unwrap().text, "<s>system:mine</s>user:hi</s>assistant:");
    let as_user = renderer.with_text_as_user(true);
    assert_eq!(as_user.render(&Prompt::Text("hi".into())).unwrap().text, "<s>user:hi</s>assistant:");
}

#[test]
fn a_conversation_without_a_template_is_told() {
    let folder = tokenizer_folder();
    let renderer = PromptRenderer::new(Tokenizer::load(folder.path()).unwrap(), None);
    let error = renderer.render(&Prompt::Messages(vec![user("hi")])).unwrap_err();
    assert!(matches!(error, TextError::NoChatTemplate));
    assert_eq!(
        error.hint().unwrap(),
        "Set `chat_template` to a Jinja file, or give plain text prompts and no system prompt"
    );
}

#[test]
fn the_eos_set_has_every_eos_of_the_folder() {
    let folder = tokenizer_folder();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.vocab_size(), 32);
    assert_eq!(eos_set(folder.path(), &tokenizer).unwrap(), [2, 5, 9]);
    fs::write(folder.path().join("config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
    let error = eos_set(folder.path(), &tokenizer).unwrap_err().to_string();
    assert!(error.ends_with("`eos_token_id` must be a token id or a list of token ids, but it is \"</s>\""), "{error}");
}

#[test]
fn broken_tokenizers_are_told() {
    let load = |files: &[(&str, &str)]| {
        let folder = folder(files);
        let error = Tokenizer::load(folder.path()).unwrap_err();
        error.to_string().replace(folder.path().to_str().unwrap(), "FOLDER")
    };
    insta::assert_snapshot!(load(&[]), @"FOLDER has no tokenizer.json");
    insta::assert_snapshot!(load(&[("tokenizer.json", "{}")]), @"FOLDER/tokenizer.json is not a tokenizer that the `tokenizers` library reads: Model missing. at line 1 column 2");
    insta::assert_snapshot!(load(&[("tokenizer.json", "\u{0}\u{1}")]), @"FOLDER/tokenizer.json is not a tokenizer that the `tokenizers` library reads: expected value at line 1 column 1");
    let good = fs::read_to_string(tokenizer_folder().path().join("tokenizer.json")).unwrap();
    insta::assert_snapshot!(load(&[("tokenizer.json", &good), ("tokenizer_config.json", "{,")]), @"FOLDER/tokenizer_config.json:1:2: not the JSON that is needed: key must be a string");
    insta::assert_snapshot!(load(&[("tokenizer.json", &good), ("tokenizer_config.json", "[]")]), @"FOLDER/tokenizer_config.json:1:1: not the JSON that is needed: expected an object, got `[]`");
    insta::assert_snapshot!(load(&[("tokenizer.json", &good), ("tokenizer_config.json", r#"{"eos_token": 2}"#)]), @"FOLDER/tokenizer_config.json: `eos_token` must be a string or an object with a `content` string, but it is 2");
    insta::assert_snapshot!(load(&[("tokenizer.json", &good), ("tokenizer_config.json", r#"{"eos_token": "<end>"}"#)]), @"FOLDER/tokenizer_config.json: eos_token is `<end>`, a token that tokenizer.json does not have");
}
