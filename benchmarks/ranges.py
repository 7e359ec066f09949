"""Records of runs, kept as they come, and tables of medians and ranges over seeds."""

import json
import pathlib
import time
from collections.abc import Callable

import numpy as np


class Kept:
    """Records as lines of JSON, so that a script that was cut short goes on where it was.

    Delete the file after a change of the script: records are told apart by their key alone.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def once(self, key: dict, run: Callable[[], list[dict]]) -> list[dict]:
        """The records of one run: those kept under its key, or else what it gives now."""
        for kept in self.runs:
            if kept["key"] == key:
                return kept["records"]
        begin = time.process_time()
        records = run()
        for record in records:
            print(record, flush=True)
        line = {"key": key, "records": records, "cpu_seconds": round(time.process_time() - begin, 1)}
        self.runs.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return records

    def seconds(self, **part: object) -> float:
        """Seconds of CPU of the runs whose keys have these values."""
        return sum(kept["cpu_seconds"] for kept in self.runs if part.items() <= kept["key"].items())


def print_ranges(title: str, records: list[dict], by: str) -> None:
    """Medians and ranges of every number, by one column."""
    numbers = [key for key, value in records[0].items() if isinstance(value, float | bool)]
    print(f"\n{title}, median (least to most)\n\n| {by} | runs | " + " | ".join(numbers) + " |")
    print("|---|---:|" + "---:|" * len(numbers))
    for kind in dict.fromkeys(record[by] for record in records):
        own = [record for record in records if record[by] == kind]
        cells = []
        for key in numbers:
            values = np.array([record[key] for record in own], float)
            cells.append(f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})")
        print(f"| {kind} | {len(own)} | " + " | ".join(cells) + " |")
