"""PEFs of real size: examples a minute and peak memory for BERT-base and ResNet-50 with 1,000 classes.

Random weights in the published shapes: cost depends on shapes, and for ResNet-50 on how many classes pass ε, which is
printed. Usage: ``python benchmarks/real_size.py [bert|resnet] --examples 8``.
"""

import argparse
import io
import json
import resource
import time

import jax
import numpy as np
import transformers

import npeff_jax as npeff
from npeff_jax import tasks


def architecture(kind: str):
    """The Linen module and an example of the published configuration."""
    from npeff_jax.models import _bert, _resnet

    if kind == "bert":
        return _bert.bert(transformers.BertConfig(num_labels=3))
    return _resnet.resnet(transformers.ResNetConfig(num_labels=1000))


class Clock(io.StringIO):
    """A progress stream that notes when each batch was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, line: str) -> int:
        self.times.append(time.perf_counter())
        return len(line)


def inputs(kind: str, n: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if kind == "resnet":
        return {"pixel_values": rng.normal(size=(n, 224, 224, 3)).astype(np.float32)}
    ids = rng.integers(1000, 30_000, (n, length)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["bert", "resnet"])
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--sharpness", type=float, default=30.0, help="scale of ResNet's logits: few classes pass ε")
    options = parser.parse_args()
    found = architecture(options.kind)
    variables = jax.jit(found.module.init)(jax.random.key(0), found.example)
    if options.kind == "resnet":
        variables["params"]["classifier"]["kernel"] *= options.sharpness
    model = npeff.models.from_linen(found.module, {k: v for k, v in variables.items() if k != "intermediates"})
    preset = tasks.presets.NLI if options.kind == "bert" else tasks.presets.IMAGENET
    examples = inputs(options.kind, options.examples, options.length)
    clock, start = Clock(), time.perf_counter()
    pefs = npeff.compute_pefs(model, examples, preset.representation, keep=preset.keep, batch_size=1, progress=clock)
    done = [t - start for t in clock.times]
    result = {
        "model": options.kind,
        "parameters": model.space.size,
        "classes": pefs.logits.shape[1],
        "rows_an_example": float(np.mean(pefs.n_rows)),
        "keep": preset.keep,
        "first_example_s": round(done[0], 1),  # with compilation
        "examples_a_minute": round(60 * (len(done) - 1) / (done[-1] - done[0]), 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "device": f"{jax.devices()[0].platform}, {jax.__version__}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
