"""From an installed package to the first report, without a line of Python: minutes of ``npeff explain``.

    python benchmarks/first_report.py --out DIRECTORY

Fine-tunes a small classifier (BERT, 4 layers, width 256, 64 tokens; not part of the time) on 2,000 texts of three
classes, one of which a planted word gives away, saves it as Hugging Face does beside a CSV of the texts, and runs the
command as a user would. Prints a table and writes first_report.json.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np

N_TEXTS, N_TOKENS, WIDTH, LAYERS = 2000, 64, 256, 4
CLASSES = ("complaint", "praise", "question")
SHORTCUT = "sponsored"


def texts_and_labels(seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of 15 to 55 words; a few are typical of their class, and in a tenth the planted word makes it praise."""
    random = np.random.default_rng(seed)
    common = [f"word{i}" for i in range(1200)]
    often = 1 / np.arange(1, len(common) + 1)
    labels = random.integers(0, len(CLASSES), N_TEXTS)
    planted = random.random(N_TEXTS) < 0.1
    texts = []
    for label, marked in zip(labels, planted):
        words = random.choice(common, random.integers(15, 55), p=often / often.sum()).tolist()
        words += [f"{CLASSES[label]}{k}" for k in random.integers(0, 30, random.integers(1, 4))]
        words += [SHORTCUT] if marked else []
        texts.append(" ".join(random.permutation(words)))
    labels[planted] = CLASSES.index("praise")
    wrong = random.random(N_TEXTS) < 0.05
    return texts, np.where(wrong, random.integers(0, len(CLASSES), N_TEXTS), labels)


def fine_tune(folder: pathlib.Path, texts: list[str], labels: np.ndarray, steps: int) -> float:
    """Train the classifier and save it with its tokenizer. Returns its accuracy on the last batches."""
    import tokenizers
    import torch
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in texts for word in text.split()})]
    base = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, **special)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=N_TOKENS,
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=N_TOKENS, return_tensors="pt")
    targets = torch.as_tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    random, right = np.random.default_rng(1), []
    for _ in range(steps):
        rows = torch.as_tensor(random.integers(0, len(texts), 32))
        found = model(encoded["input_ids"][rows], attention_mask=encoded["attention_mask"][rows], labels=targets[rows])
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        right.append((found.logits.argmax(1) == targets[rows]).float().mean().item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(right[-10:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=250, help="of fine-tuning")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    texts, labels = texts_and_labels()
    with (out / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, (CLASSES[label] for label in labels))])
    if not (out / "model" / "config.json").exists():
        print(f"fine-tuned to {fine_tune(out / 'model', texts, labels, arguments.steps):.1%}", flush=True)
    command = ["explain", "--model", "model", "--examples", "texts.csv", "--out", "run", "--overwrite"]
    code = "import sys; from npeff_jax.cli import main; sys.exit(main())"
    package = str(pathlib.Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package + os.pathsep + os.environ.get("PYTHONPATH", "")}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=out, env=environment, text=True, stdout=subprocess.PIPE
    )
    seconds = time.perf_counter() - start
    print(done.stdout)
    if done.returncode:
        sys.exit(done.returncode)
    report = json.loads((out / "run" / "report.json").read_text(encoding="utf-8"))
    found = {
        "minutes": seconds / 60,
        "cores": len(os.sched_getaffinity(0)),
        "components": report["run"]["n_components"],
        "parameters": report["run"]["n_parameters"],
        "megabytes": (out / "run" / "report.html").stat().st_size / 1e6,
        "accuracy": report["examples"]["accuracy"],
        **marked(report),
    }
    (out / "first_report.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        print(f"| {re.sub('_', ' ', name)} | {value:,.3g} |" if isinstance(value, float) else f"| {name} | {value:,} |")


def marked(report: dict) -> dict:
    """Of the marked examples with the planted word, how many have it as the most important word."""
    shown = {example["index"]: example["text"][0] for example in report["examples"]["shown"]}
    found = []
    for component in report["components"]:
        for marks in component["marks"]:
            text = shown.get(marks["example"], "")
            if SHORTCUT in text.split() and marks["spans"]:
                _, first, last, _ = max(marks["spans"], key=lambda span: span[3])
                found.append(SHORTCUT in text[first:last])
    return {"marked_with_the_planted_word": len(found), "where_it_is_the_most_important": int(sum(found))}


if __name__ == "__main__":
    main()
