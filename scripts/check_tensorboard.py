"""Checks that TensorBoard's own reader finds in a run's event files what metrics.jsonl says.

    python scripts/check_tensorboard.py RUN_FOLDER

The run must have been made with `report_to = ["tensorboard"]`; it may have been resumed. Made for tensorboard 2.21.0
(with setuptools).
Exit code 0 when every value agrees, 1 otherwise.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def single(value):
    """The value as a float of four bytes, which is what an event file holds."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def main():
    folder = Path(sys.argv[1])
    (events,) = (folder / "runs").iterdir()
    found = EventAccumulator(str(events), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    scalars = {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [(name, line["step"], value) for line in lines for name, value in line.items() if value is not None]
    values = [value for value in values if value[0] not in ("step", "time")]
    wrong = [value for value in values if scalars.get(value[0], {}).get(value[1]) != single(value[2])]
    for name, step, value in wrong:
        print(f"step {step}: {name} is {value}, TensorBoard reads {scalars.get(name, {}).get(step)}")
    extra = sum(map(len, scalars.values())) - len(values) + len(wrong)
    rewards, texts = found.Histograms("completions/rewards"), found.Tensors("completions/text")
    print(f"{len(values)} values, {len(wrong)} wrong, {extra} too many; {len(rewards)} histograms, {len(texts)} texts")
    sys.exit(bool(wrong or extra or not rewards or not texts))


if __name__ == "__main__":
    main()
