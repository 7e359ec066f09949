"""One table of what the scripts of this folder have written: ``python table.py --out FOLDER``."""

import argparse
import json
import pathlib


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="the folder they wrote to")
    parser.add_argument("--fast", action="store_true", help="of fast settings, which are no results")
    options = parser.parse_args()
    records = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    records = [record for record in records if record["fast"] == options.fast]
    if not records:
        parser.error(f"no results in {options.out}; run the scripts with --out {options.out}")
    print("| | paper | ours | |\n|---|---:|---:|---|")
    for record in records:
        times = (
            f"{record['seconds']:.0f} s, {record['cpu_seconds']:.0f} of CPU, beside "
            f"{record['shared_cpu_seconds']:.0f} of what scripts share"
        )
        print(f"| **{record['question']}** (`{record['script']}.py`) | | | {times} |")
        for row in record["rows"]:
            print(f"| {row['quantity']} | {row['paper']} | {row['ours']} | {row['note']} |")
    devices = sorted({f"{record['device']}, Python {record['python']}, jax {record['jax']}" for record in records})
    print(f"\nOn {'; '.join(devices)}.")


if __name__ == "__main__":
    main()
