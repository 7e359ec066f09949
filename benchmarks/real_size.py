"""What PEFs cost: examples a minute, peak memory and bytes an example, for BERT-base, ResNet-50 of 1,000 classes and,
beside them, the demo's digits network.

The published shapes with random weights, and the paper's settings (`tasks.presets`): cost depends on shapes and, for
ResNet-50, on how many classes pass ε, which is printed; the head is scaled so that logits have a chosen spread.

Usage: ``python benchmarks/real_size.py bert --examples 16``, ``... resnet --spread 3``, ``... resnet --sketch 16``.
"""

import argparse
import dataclasses
import io
import json
import resource
import time

import jax
import numpy as np
import transformers

import npeff_jax as npeff
from npeff_jax import tasks
from npeff_jax.models import _bert, _resnet


class Clock(io.StringIO):
    """A progress stream that notes when each batch was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.done: list[int] = []

    def write(self, line: str) -> int:
        self.times.append(time.perf_counter())
        self.done.append(json.loads(line)["done"])
        return len(line)


def bert(n: int, length: int) -> tuple[npeff.Model, dict[str, np.ndarray]]:
    """BERT-base with three classes, and random token ids."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30_000, (n, length)).astype(np.int32)
    examples = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return _random_model(_bert.bert(transformers.BertConfig(num_labels=3))), examples


def resnet(n: int, spread: float) -> tuple[npeff.Model, dict[str, np.ndarray]]:
    """ResNet-50 with 1,000 classes, and noise; the standard deviation of its logits is ``spread``."""
    examples = {"pixel_values": np.random.default_rng(0).normal(size=(n, 224, 224, 3)).astype(np.float32)}
    model = _random_model(_resnet.resnet(transformers.ResNetConfig(num_labels=1000)))
    logits = model.logits_fn(model.params, jax.tree.map(lambda leaf: leaf[0], examples))
    head = model.params["classifier"]
    head = {**head, "kernel": head["kernel"] * spread / np.std(logits)}
    return dataclasses.replace(model, params={**model.params, "classifier": head}), examples


def _random_model(found) -> npeff.Model:
    variables = jax.jit(found.module.init)(jax.random.key(0), found.example)
    return npeff.models.from_linen(found.module, {k: v for k, v in variables.items() if k != "intermediates"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["digits", "bert", "resnet"])
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of BERT's examples")
    parser.add_argument("--spread", type=float, default=5.0, help="standard deviation of ResNet's logits")
    parser.add_argument("--sketch", type=int, help="principal rows from a random span of so many dimensions")
    options = parser.parse_args()
    if options.kind == "digits":
        found = tasks.digits(progress=False)
        model, examples = found.model, found.train_images[: options.examples]
        preset = dataclasses.replace(tasks.presets.NLI, representation=npeff.LowRank(), keep=2048)
    elif options.kind == "bert":
        preset, (model, examples) = tasks.presets.NLI, bert(options.examples, options.length)
    else:
        preset, (model, examples) = tasks.presets.IMAGENET, resnet(options.examples, options.spread)
    representation = preset.representation
    if options.sketch:
        representation = npeff.LowRank(
            min_probability=representation.min_probability, sketch=options.sketch, max_rows=max(1, options.sketch - 8)
        )
    clock, start = Clock(), time.perf_counter()
    pefs = npeff.compute_pefs(model, examples, representation, keep=preset.keep, progress=clock)
    done = [t - start for t in clock.times]
    p = np.asarray(jax.nn.softmax(pefs.logits))
    result = {
        "model": options.kind,
        "parameters": model.space.size,
        "classes": p.shape[1],
        "classes_above_threshold": float(np.median((p >= representation.min_probability).sum(1))),
        "rows_an_example": float(np.median(pefs.n_rows)),
        "lost_mass": float(np.median(pefs.lost_mass)),
        "lost_trace": float(np.median(pefs.lost_trace)),
        "kept_energy": float(np.median(pefs.kept_energy)),
        "keep": preset.keep,
        "bytes_an_example": sum(np.asarray(part[:1]).nbytes for part in (pefs.values, pefs.indices)),
        "first_batch_s": round(done[0], 1),  # with compilation
        "examples_a_minute": round(60 * (clock.done[-1] - clock.done[0]) / (done[-1] - done[0]), 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "device": f"{jax.devices()[0].platform}, {jax.__version__}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
