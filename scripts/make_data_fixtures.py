"""Writes tests/fixtures/data/*.parquet and what Python reads in them, and prints what `datasets` makes of slices.

    pip install datasets==5.2.0 pyarrow==26.0.1
    python scripts/make_data_fixtures.py

The files are as `datasets` (`Dataset.to_parquet`) and pyarrow write them: nested messages, Snappy and Zstandard, nulls,
integers, floats, booleans, timestamps. `expected.json` holds each row as `json.dumps` of what pyarrow reads back, with
times as text; tests/parquet.rs compares the two.
"""

import datetime
import decimal
import json
import math
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "data"
WHEN = datetime.datetime(2026, 3, 1, 12, 30, 15, 250000, tzinfo=datetime.timezone.utc)


def chats():
    """Rows of `messages`, as many instruction data sets have them."""
    for i in range(7):
        turns = [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"It is {2 * i}."}]
        if i % 2:
            turns.insert(0, {"role": "system", "content": "Be brief."})
        yield {"messages": turns, "source": None if i == 3 else f"made-{i}", "score": i / 4, "verified": i % 3 == 0}


def kinds():
    """One column of each kind of value, and nulls among them."""
    for i in range(5):
        yield {
            "prompt": f"row {i} é🦀",
            "answer": i - 2,
            "big": 2**63 - 1 - i,
            "unsigned": 2**64 - 1 - i,
            "single": None if i == 1 else i / 2,
            "double": [0.1, 1e300, -0.0, math.nan, 3.0][i],
            "flag": [True, False, None, True, False][i],
            "when": None if i == 2 else WHEN + datetime.timedelta(days=i),
            "day": datetime.date(2026, 1, 1 + i),
            "cost": decimal.Decimal(f"{i}.50"),
            "tags": [None, [], ["a"], ["a", None, "b"], ["x", "y"]][i],
            "nested": {"level": {"name": f"n{i}", "values": [i, i + 1]}, "empty": None},
            "bytes": bytes([i, 255]),
        }


KINDS = pa.schema(
    [
        ("prompt", pa.string()),
        ("answer", pa.int32()),
        ("big", pa.int64()),
        ("unsigned", pa.uint64()),
        ("single", pa.float32()),
        ("double", pa.float64()),
        ("flag", pa.bool_()),
        ("when", pa.timestamp("ms", tz="UTC")),
        ("day", pa.date32()),
        ("cost", pa.decimal128(9, 2)),
        ("tags", pa.list_(pa.large_string())),
        (
            "nested",
            pa.struct(
                [
                    ("level", pa.struct([("name", pa.string()), ("values", pa.list_(pa.int64()))])),
                    ("empty", pa.string()),
                ]
            ),
        ),
        ("bytes", pa.binary()),
    ]
)


def plain(value):
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " +00:00"
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    return value


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(list(chats())).to_parquet(FOLDER / "chats.parquet", batch_size=3)
    table = pa.Table.from_pylist(list(kinds()), schema=KINDS)
    pq.write_table(table, FOLDER / "kinds.zstd.parquet", compression="zstd", row_group_size=2)
    pq.write_table(table.slice(0, 0), FOLDER / "no_rows.parquet")
    questions = [
        {"question": f"Each of {n} boxes holds 1,000 pens. How many?", "answer": f"{n}*1000 = {n},000\n#### {n},000"}
        for n in range(2, 8)
    ]
    datasets.Dataset.from_list(questions).to_parquet(FOLDER / "gsm8k_like.parquet")
    expected = {}
    for path in sorted(FOLDER.glob("*.parquet")):
        expected[path.name] = [plain(row) for row in pq.read_table(path).to_pylist()]
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (FOLDER / "expected.json").write_text(text + "\n", encoding="utf-8")

    for split, rows in [("[:3]", 10), ("[3:]", 10), ("[-3:]", 10), ("[:-3]", 10), ("[:500]", 10), ("[10%:20%]", 25),
                        ("[:50%]", 7), ("[:50%]", 5), ("[-10%:]", 25)]:
        instruction = datasets.ReadInstruction.from_spec(f"train{split}").to_absolute({"train": rows})[0]
        print(f"train{split} of {rows}: {instruction.from_}..{instruction.to}")
    print({path.name: path.stat().st_size for path in sorted(FOLDER.iterdir())})


if __name__ == "__main__":
    main()
