"""PEFs of a BERT classifier: PyTorch's code through torchax against the native converter, from the same folder.

    python benchmarks/bench_torch.py                 # 4 layers of width 256, 64 tokens, and BERT-base
    python benchmarks/bench_torch.py --sizes small   # the first alone
    python benchmarks/bench_torch.py --attention eager sdpa

Both in one process, in turns, after a run of each that compiles; the time of a batch of examples on one device, as
`compute_pefs` computes it (C − 1 rows by backward passes, norms and rotation), without selection and writing. The
ratio is the median of the rounds' ratios.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import numpy as np
import torch
import transformers

import npeff_jax as npeff
from npeff_jax._sharding import default_mesh
from npeff_jax.models._huggingface_torch import load_module
from npeff_jax.models._torch_tasks import forward_of
from npeff_jax.pefs._batch import BatchRows

CLASS = "BertForSequenceClassification"
SIZES = {
    "small": ({"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}, 64, 8),
    "base": ({}, 64, 2),  # the configuration's defaults are BERT-base
}


def models(directory: str, attentions: list[str]) -> dict[str, npeff.Model]:
    """The native converter's model, and PyTorch's with each implementation of attention."""
    found = {"native": npeff.models.from_huggingface(directory)}
    for attention in attentions:
        config = transformers.AutoConfig.from_pretrained(directory)
        config._attn_implementation = attention
        module = load_module(pathlib.Path(directory), config, CLASS)
        found[f"torchax, {attention}"] = npeff.models.from_torch(module, forward=forward_of(CLASS))
    return found


def measure(size: str, attentions: list[str], rounds: int) -> dict[str, object]:
    """Seconds per batch of each model, and their ratio to the native one."""
    fields, length, batch = SIZES[size]
    config = transformers.BertConfig(**fields, id2label={0: "entailment", 1: "neutral", 2: "contradiction"})
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, length + 1, batch)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    examples = {"input_ids": (rng.integers(5, 20_000, mask.shape) * mask).astype(np.int32), "attention_mask": mask}
    with tempfile.TemporaryDirectory() as directory:
        transformers.BertForSequenceClassification(config).eval().save_pretrained(directory)
        compared = models(directory, attentions)
    runs = {
        name: BatchRows(model, npeff.LowRank(), default_mesh(None), batch, "highest")
        for name, model in compared.items()
    }
    compile_s = {}
    for name, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(run(examples, 0))
        compile_s[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(examples, 0))
            seconds[name].append(time.perf_counter() - start)
    native = np.array(seconds["native"])
    return {
        "size": size,
        "batch": batch,
        "ms_per_example": {name: 1e3 * float(np.median(s)) / batch for name, s in seconds.items()},
        "ratio": {name: float(np.median(np.array(s) / native)) for name, s in seconds.items()},
        "compile_s": compile_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    found = [measure(size, options.attention, options.rounds) for size in options.sizes]
    for entry in found:
        print(f"\n{entry['size']}, {entry['batch']} examples a batch, {jax.devices()[0].device_kind}")
        for name, ms in entry["ms_per_example"].items():
            told = f"{ms:9.1f} ms per example, {entry['ratio'][name]:.2f}, compiled in {entry['compile_s'][name]:.0f} s"
            print(f"  {name:<16}{told}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
