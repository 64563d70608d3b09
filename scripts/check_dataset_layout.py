"""Asks `datasets` which files are which split, for the layouts of src/data/layout_tests.rs, and prints its answers.

    pip install datasets==5.2.0
    python scripts/check_dataset_layout.py

For people to compare: a split that is told there must be told here. Configurations by folder without a card are not known
to `datasets`, which takes all files as one.
"""

import tempfile
from pathlib import Path

from datasets.data_files import DataFilesDict, get_data_patterns

LAYOUTS = [
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
    ["data/train_sft-00000-of-00001.parquet"],
    ["train.jsonl", "test.jsonl"],
    ["my_train_file.jsonl", "eval.json"],
    ["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"],
    ["rows.jsonl", "README.md", "script.py"],
    ["a.jsonl", "b.parquet", ".cache/c.jsonl", "dataset_infos.json"],
    ["training-set.jsonl", "constrained.jsonl"],
]


def main():
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            for name in layout:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}\n")
            patterns = get_data_patterns(folder)
            found = DataFilesDict.from_patterns(patterns, base_path=folder)
            splits = {str(split): [str(Path(file).relative_to(folder)) for file in files] for split, files in found.items()}
            print(layout, "->", splits)


if __name__ == "__main__":
    main()
