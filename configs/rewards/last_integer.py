"""A reward program: 1 where the last number of a completion is the answer of its row, else 0.

It reads a JSON object a line from stdin and answers each with one on stdout; `remaining` counts those of the batch that
still follow. What it prints on stderr appears in candlewick's log.
"""

import json
import re
import sys

for line in sys.stdin:
    request = json.loads(line)
    numbers = re.findall(r"(?:(?<!\d)-)?\d+", request["completion"])
    is_right = bool(numbers) and int(numbers[-1]) == int(request["columns"]["answer"])
    print(json.dumps({"id": request["id"], "score": float(is_right)}), flush=True)
