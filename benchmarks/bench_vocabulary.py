"""The next token of a vocabulary of 262,144 words: time and memory of what is chosen, and of draws.

python benchmarks/bench_vocabulary.py [--words N] [--width D] [--examples N]

A causal language model of GPT-2's kind with one layer and random weights, a table of words that the output shares, each
representation in a process of its own: seconds of the first batch (compilation included) and per example after it, the
largest resident memory over that of the loaded model, the trace of F that is missing or its relative error.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

CHOICES = {
    "default": "None",
    "Sampled(16)": "npeff.Sampled(16)",
    "Sampled(64)": "npeff.Sampled(64)",
    "LowRank(min_probability=3e-3)": "npeff.LowRank(min_probability=3e-3)",
}


def one(choice, options):
    """The figures of one representation, as a line of JSON."""
    import transformers

    import npeff_jax as npeff
    from npeff_jax.models import language_model

    with tempfile.TemporaryDirectory() as folder:
        config = transformers.GPT2Config(
            vocab_size=options.words, n_embd=options.width, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        model = language_model(folder).next_token()
    ids = np.random.default_rng(0).integers(options.words, size=(options.examples + 1, 16)).astype(np.int32)
    representation = eval(CHOICES[choice], {"npeff": npeff})
    run = {"keep": 4096, "batch_size": 1, "progress": False}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = []
    for n in (1, 1, options.examples + 1):  # whether or not programs are kept from run to run, the last two differ by n
        start = time.perf_counter()
        pefs = npeff.compute_pefs(model, {"input_ids": ids[:n]}, representation, **run)
        took.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "choice": choice,
                "taken": str(pefs.schema.representation),
                "parameters": model.space.size,
                "rows": float(np.mean(pefs.n_rows)),
                "first, s": took[0],
                "each, s": (took[2] - took[1]) / options.examples,
                "memory, GB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6,
                "lost trace": float(np.mean(pefs.lost_trace)),
            }
        ),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--one", choices=CHOICES)
    options = parser.parse_args()
    if options.one:
        one(options.one, options)
        return
    for choice in CHOICES:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", choice], check=True)


if __name__ == "__main__":
    main()
