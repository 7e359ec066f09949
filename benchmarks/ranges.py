"""Tables of medians and ranges over seeds, for scripts whose records are dicts."""

import numpy as np


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
