"""Renders the chat templates under tests/fixtures/chat with transformers and stores what comes out.

Made with transformers 5.23.0, jinja2 3.1.6, tokenizers 0.23.3:

    python scripts/make_chat_fixtures.py

writes tests/fixtures/chat/renders.json, which tests/chat_template.rs compares byte for byte. The templates are
written for this project in the styles of well-known model families.
"""

import json
import pathlib

import jinja2
import tokenizers
import transformers

FOLDER = pathlib.Path(__file__).parent.parent / "tests/fixtures/chat"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers, a < b & c's \"sum\".",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 0}},
                "required": ["a"],
            },
        },
    }
]

CONVERSATIONS = {
    "plain": [{"role": "user", "content": "What is 12 + 7?"}],
    "system": [
        {"role": "system", "content": "  Answer with a number.\n"},
        {"role": "user", "content": " What is\n12 + 7? <&>'\"é€🦀 "},
    ],
    "turns": [
        {"role": "user", "content": "What is 12 + 7?"},
        {"role": "assistant", "content": "<think>\n12 and 7 make 19.\n</think>\n\n19"},
        {"role": "user", "content": "And 7 - 12?"},
        {"role": "assistant", "content": "<think>\nLess than nothing.\n</think>\n\n-5"},
    ],
    "unordered": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "tools": [
        {"role": "user", "content": "What is 12 + 7?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 7, "c": None}}}],
        },
        {"role": "tool", "name": "add", "content": "19"},
    ],
}

OPTIONS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": TOOLS},
    {"add_generation_prompt": True, "enable_thinking": False},
]


def main():
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    cases = []
    for path in sorted(FOLDER.glob("*.jinja")):
        for name, messages in CONVERSATIONS.items():
            for options in OPTIONS:
                # The date would change from day to day.
                extra = {"date_string": "20 Nov 2026"} if path.stem == "llama3" else {}
                case = {"template": path.name, "conversation": name, "options": {**options, **extra}}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, chat_template=path.read_text(), tokenize=False, **options, **extra
                    )
                except (jinja2.exceptions.TemplateError, TypeError) as error:
                    case["error"] = str(error)
                cases.append(case)
    versions = {module.__name__: module.__version__ for module in (transformers, tokenizers)}
    versions["jinja2"] = __import__("importlib.metadata").metadata.version("jinja2")
    out = {"versions": versions, "conversations": CONVERSATIONS, "cases": cases}
    (FOLDER / "renders.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "errors")


if __name__ == "__main__":
    main()
