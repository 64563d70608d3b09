"""Hands the metrics of a candlewick run to wandb or trackio.

The run starts this program and writes JSON objects to its standard input, one a line: first what to start, then
`log`, `completion`, `flush` and `finish`. The answer, one line, says that the tracker is ready or why it is not. The
end of the input without a `finish` means that the run was killed: what there is is handed over all the same.

A run that goes on after a kill makes some steps again, in the same bits. Those that the tracker has are not sent twice:
`<tracker>.json` in the run's folder remembers the last one, and the name under which the tracker knows the run.
"""

import itertools
import json
import os
import secrets
import signal
import sys
import traceback


class State:
    """What `<tracker>.json` holds."""

    def __init__(self, path, is_resumed):
        self.path = path
        self.values = {"id": secrets.token_hex(4), "step": -1, "has_results": False}
        if is_resumed and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.values.update(json.load(file))

    def __getitem__(self, name):
        return self.values[name]

    def update(self, **values):
        self.values.update(values)
        temp = self.path + ".tmp"
        with open(temp, "w", encoding="utf-8") as file:
            json.dump(self.values, file)
            file.write("\n")
        os.replace(temp, self.path)


class Wandb:
    def __init__(self, start, state):
        import wandb

        self.sdk = wandb
        self.run = wandb.init(
            project=start["project"] or os.environ.get("WANDB_PROJECT") or "candlewick",
            name=start["name"],
            id=state["id"],
            resume="allow",
            config=start["config"],
            dir=start["folder"],
            settings=wandb.Settings(console="off"),
        )
        # The server knows what arrived; offline the file is all there is.
        self.seen = self.run.starting_step - 1 if self.run.resumed else state["step"]
        self.url = self.run.url

    def log(self, step, values):
        self.run.log(values, step=step)

    def table(self, columns, rows):
        return self.sdk.Table(columns=columns, data=rows)

    def results(self, step, values):
        # Part of the last step's row, unless that is on the server already.
        if step > self.seen:
            self.run.log(values, step=step)
        self.run.summary.update(values)

    def finish(self, exit_code):
        self.run.finish(exit_code=exit_code)


class Trackio:
    def __init__(self, start, state):
        import trackio

        self.sdk = trackio
        is_known = state["step"] >= 0
        self.run = trackio.init(
            project=start["project"] or os.environ.get("TRACKIO_PROJECT") or "candlewick",
            name=start["name"],
            resume="allow" if is_known else "never",
            config=start["config"],
            embed=False,
        )
        self.seen = state["step"]
        self.url = None

    def log(self, step, values):
        self.sdk.log(values, step=step)

    def table(self, columns, rows):
        import pandas

        return self.sdk.Table(dataframe=pandas.DataFrame(rows, columns=columns))

    def results(self, step, values):
        self.sdk.log(values, step=step)

    def finish(self, exit_code):
        self.sdk.finish()


class Bridge:
    """What to do with each message."""

    def __init__(self, tracker, state):
        self.tracker = tracker
        self.state = state
        self.step = max(tracker.seen, 0)
        self.rows = []

    def log(self, message):
        self.step = message["step"]
        if self.step <= self.tracker.seen:
            return
        self.tracker.log(self.step, without_nulls(message["metrics"]))
        self.state.update(step=self.step)

    def completion(self, message):
        if message["step"] > self.tracker.seen:
            self.rows.append(message)

    def flush(self, _message=None):
        """The completions since the last time, as one table."""
        rows, self.rows = self.rows, []
        if not rows:
            return
        rewards = list(dict.fromkeys(name for row in rows for name in row["rewards"]))
        fixed = ["step", "prompt", "completion", "reward", "advantage", "finish_reason"]
        columns = fixed + [f"rewards/{name}" for name in rewards]
        table = [[row[name] for name in fixed] + [row["rewards"].get(name) for name in rewards] for row in rows]
        self.tracker.log(self.step, {"completions": self.tracker.table(columns, table)})

    def end(self, _message):
        """The input ended without a `finish`."""
        self.flush()

    def finish(self, message):
        self.flush()
        results = without_nulls(message["results"] or {})
        if results and not self.state["has_results"]:
            self.tracker.results(self.step, results)
            self.state.update(has_results=True)


def without_nulls(metrics):
    """A value that is not finite comes as null; trackers draw a gap there."""
    return {name: value for name, value in metrics.items() if value is not None}


def main():
    # Ctrl-C is for the run, which then ends in order and says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What the trackers print goes to the log, which is standard error.
    os.dup2(2, 1)

    def answer(**message):
        try:
            print(json.dumps(message), file=answers, flush=True)
        except OSError:
            # The run is gone.
            pass

    lines = sys.stdin.buffer
    start = json.loads(lines.readline())
    state = State(start["state"], start["is_resumed"])
    try:
        tracker = {"wandb": Wandb, "trackio": Trackio}[start["tracker"]](start, state)
    except ImportError as error:
        traceback.print_exc()
        answer(missing=str(error))
        return 1
    except BaseException as error:
        traceback.print_exc()
        answer(refused=f"{type(error).__name__}: {error}")
        return 1
    state.update()
    answer(ready=True, url=tracker.url)
    bridge, exit_code, has_warned = Bridge(tracker, state), 1, False
    messages = itertools.chain(lines, [b'{"end": null}'])
    for message in map(json.loads, messages):
        try:
            ((kind, message),) = message.items()
            getattr(bridge, kind)(message)
        except Exception as error:
            traceback.print_exc()
            if not has_warned:
                answer(warning=f"{type(error).__name__}: {error}")
                has_warned = True
        if kind == "finish":
            exit_code = message["exit_code"]
            break
    tracker.finish(exit_code)
    return 0


sys.exit(main())
