"""Short readable rules over examples, and how well they distinguish a component's top examples from the others."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

_WORD = re.compile(r"\w+(?:['’]\w+)*")

_MOST_WORDS = 2000
"""Maximum number of words with rules: the most frequent ones among those that at most half of the texts contain."""

_CUTS = np.linspace(0.1, 0.9, 9)
"""Quantiles of a numeric property used as thresholds of "at least" rules."""

_SETS = 64
"""Number of sets that are read at once."""

_GRID = 4
"""Images are described by the brightness of `_GRID` × `_GRID` cells."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """Boolean properties of n examples that a person can verify by looking at them.

    Attributes:
        names: names of the f properties.
        has: (n, f), whether each example has each property.
    """

    names: tuple[str, ...]
    has: Bool[np.ndarray, "n f"]

    @classmethod
    def of(
        cls,
        n: int,
        readable: Any = None,
        logits: Float[np.ndarray, "n C"] | None = None,
        labels: Int[np.ndarray, "n"] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "Rules":
        """Make properties from the contents, labels and predictions of examples.

        Args:
            n: number of examples.
            readable: per example a text, or several (segments); or images (n, height, width[, channels]); or {name: n
                truth values, numbers or names}.
            logits: logits, whose predicted class and two likeliest classes become properties.
            labels: labels, each of which becomes a property.
            class_names: names of the classes.

        Raises:
            ValueError: ``readable`` has the wrong type or length.
        """
        found: dict[str, np.ndarray] = {}
        classes = _Classes(class_names)
        if labels is not None:
            found |= classes.rules("label", np.asarray(labels))
        if logits is not None and np.ndim(logits) == 2 and np.shape(logits)[1] > 1:
            likely = np.sort(np.argsort(-np.nan_to_num(np.asarray(logits, np.float64)), axis=1)[:, :2], axis=1)
            found |= classes.rules("predicted", np.asarray(logits).argmax(axis=1))
            if np.shape(logits)[1] > 2:
                found |= classes.pairs(likely)
        found |= _rules_of(getattr(readable, "pixels", getattr(readable, "segments", readable)), n)
        return cls._distinct({name: has for name, has in found.items() if 2 <= has.sum() <= n - 2}, n)

    @classmethod
    def _distinct(cls, found: Mapping[str, np.ndarray], n: int) -> "Rules":
        """Keep one property per distinct set of examples, under its first name; a property and its negation are one."""
        first: dict[bytes, str] = {}
        for name, has in found.items():
            first.setdefault((has ^ has[0]).tobytes(), name)
        names = tuple(first.values())
        return cls(names, np.stack([found[name] for name in names], 1) if names else np.zeros((n, 0), bool))

    def read(
        self, top: Bool[np.ndarray, "s n"], halves: Bool[np.ndarray, "s n"]
    ) -> tuple[Float[np.ndarray, "s"], list[str]]:
        """Find per set the rule that best separates it from the other examples.

        A rule is a property, its absence, or a combination of two of these. It is chosen on one half of the examples
        and scored on the other, both ways. The score is the rule's AUC: the mean of the fraction of the set that
        satisfies it and the fraction of the others that does not.

        Args:
            top: (s, n), the sets.
            halves: (s, n), one half of the examples per set.

        Returns:
            Per set, the mean AUC over the halves that did not choose, and the rule chosen on all examples.
        """
        scores, texts = np.full(len(top), 0.5), [""] * len(top)
        if not self.names:
            return scores, texts
        has = self.has.astype(np.float32)
        for start in range(0, len(top), _SETS):
            block = slice(start, start + _SETS)
            own, half = top[block], halves[block]
            for choosing in (half, ~half):
                for s, rule in enumerate(_best_rules(has, own & choosing, ~own & choosing), start):
                    scored = ~choosing[s - start]
                    scores[s] += (_auc(self._applied(rule)[scored], top[s, scored]) - 0.5) / 2
            texts[block] = [self._text(rule) for rule in _best_rules(has, own, ~own)]
        return scores, texts

    def _applied(self, rule: "_Rule") -> Bool[np.ndarray, "n"]:
        a, b = _literal(self.has, rule.first), _literal(self.has, rule.second)
        return a | b if rule.either else a & b

    def _text(self, rule: "_Rule") -> str:
        parts = [
            ("" if k < len(self.names) else "not ") + self.names[k % len(self.names)] for k in (rule.first, rule.second)
        ]
        return parts[0] if rule.first == rule.second else f" {'or' if rule.either else 'and'} ".join(parts)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The AND or the OR of two properties, which are equal for a rule with a single property."""

    first: int
    second: int
    either: bool


def _best_rules(
    has: Float[np.ndarray, "n f"], inside: Bool[np.ndarray, "s n"], outside: Bool[np.ndarray, "s n"]
) -> list[_Rule]:
    """Return per set the rule with the best single property, and the second one that improves it most, if any does.

    Property k + f is the absence of property k. A rule is better the larger the fraction of ``inside`` that satisfies
    it minus that of ``outside``. Counts are exact in float32 below 2^24 examples, so that ties are ties.
    """
    sides = [(side.astype(np.float32), np.maximum(side.sum(axis=1, keepdims=True), 1)) for side in (inside, outside)]
    p, q = (np.asarray(side @ has, np.float64) / size for side, size in sides)
    single = np.concatenate([p - q, q - p], axis=1)
    first, each = single.argmax(axis=1), np.arange(len(inside))
    present = has > 0
    held = np.stack([_literal(present, k) for k in first.tolist()]).astype(np.float32)
    parts = []
    for side, size in sides:
        kept = side * held
        count = np.asarray(kept @ has, np.float64)
        parts.append(np.concatenate([count, kept.sum(axis=1, keepdims=True) - count], axis=1) / size)
    both = parts[0] - parts[1]
    alone = single[each, first]
    either = alone[:, None] + single - both
    rules = []
    for s in range(len(inside)):
        best_both, best_either = int(both[s].argmax()), int(either[s].argmax())
        better = either[s, best_either] >= both[s, best_both]
        second = best_either if better else best_both
        if max(either[s, best_either], both[s, best_both]) <= alone[s] + 1e-6:
            second, better = int(first[s]), True
        rules.append(_Rule(int(first[s]), second, bool(better)))
    return rules


def _literal(has: Bool[np.ndarray, "n f"], k: int) -> Bool[np.ndarray, "n"]:
    """Return whether each example has property k, or from f on, whether it lacks property k − f."""
    f = has.shape[1]
    return has[:, k] if k < f else ~has[:, k - f]


def _auc(has: Bool[np.ndarray, "n"], own: Bool[np.ndarray, "n"]) -> float:
    if own.all() or not own.any():
        return 0.5
    return float((has[own].mean() + 1 - has[~own].mean()) / 2)


class _Classes:
    """Properties about classes, named by class."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names

    def rules(self, what: str, classes: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
        return {f"{what} {self._name(c)}": classes == c for c in np.unique(classes).tolist()}

    def pairs(self, likely: Int[np.ndarray, "n 2"]) -> dict[str, np.ndarray]:
        return {
            f"{self._name(a)} or {self._name(b)} likeliest": (likely == (a, b)).all(axis=1)
            for a, b in np.unique(likely, axis=0).tolist()
        }

    def _name(self, c: int) -> str:
        return str(c) if self.names is None or not 0 <= c < len(self.names) else str(self.names[c])


def _rules_of(readable: Any, n: int) -> dict[str, np.ndarray]:
    if readable is None:
        return {}
    if isinstance(readable, Mapping):
        found: dict[str, np.ndarray] = {}
        for name, values in readable.items():
            found |= _property(str(name), np.asarray(values), n)
        return found
    if isinstance(readable, str) or not hasattr(readable, "__len__"):
        raise TypeError(
            f"readable is a {type(readable).__name__}; expected a text per example, images (n, height, width), or "
            "{name: values}"
        )
    if len(readable) != n:
        raise ValueError(f"readable has {len(readable)} entries; expected {n}, one per example of the fit")
    if hasattr(readable, "shape") and np.ndim(readable) in (3, 4):
        return _image_rules(np.asarray(readable, np.float64), n)
    items = [(item,) if isinstance(item, str) else tuple(item) for item in readable]
    if all(isinstance(part, str) for item in items for part in item):
        return _text_rules(items, n)
    raise ValueError(
        "readable is not texts, images or properties; expected a text per example, images (n, height, width), or "
        "{name: values}"
    )


def _property(name: str, values: np.ndarray, n: int) -> dict[str, np.ndarray]:
    if values.shape != (n,):
        raise ValueError(f"readable[{name!r}] has shape {values.shape}; expected ({n},), a value per example")
    if values.dtype == bool:
        return {name: values}
    if np.issubdtype(values.dtype, np.number):
        cuts = np.unique(np.quantile(values, _CUTS))
        return {f"{name} >= {cut:.3g}": values >= cut for cut in cuts}
    return {f"{name} {value}": values == value for value in np.unique(values)}


def _image_rules(images: np.ndarray, n: int) -> dict[str, np.ndarray]:
    gray = images.mean(axis=3) if images.ndim == 4 else images
    found: dict[str, np.ndarray] = {}
    for y, rows in enumerate(np.array_split(gray, min(_GRID, gray.shape[1]), axis=1)):
        for x, part in enumerate(np.array_split(rows, min(_GRID, gray.shape[2]), axis=2)):
            found |= _property(f"brightness of row {y + 1}, column {x + 1} of {_GRID}", part.mean(axis=(1, 2)), n)
    return found


def _text_rules(items: list[tuple[str, ...]], n: int) -> dict[str, np.ndarray]:
    """Return properties of texts: words by segment, and the length of each segment."""
    owners: dict[tuple[int, str], list[int]] = collections.defaultdict(list)
    for i, segments in enumerate(items):
        for segment, text in enumerate(segments):
            for word in set(_WORD.findall(text.lower())):
                owners[segment, word].append(i)
    some = (key for key, own in owners.items() if 2 <= len(own) <= n / 2)
    chosen = sorted(some, key=lambda key: (-len(owners[key]), key))[:_MOST_WORDS]
    several = max(map(len, items), default=0) > 1
    found: dict[str, np.ndarray] = {}
    for segment, word in chosen:
        has = np.zeros(n, bool)
        has[owners[segment, word]] = True
        found[f"“{word}”" + (f" in part {segment + 1}" if several else "")] = has
    for segment in range(max(map(len, items), default=0)):
        lengths = np.array([len(item[segment]) if segment < len(item) else 0 for item in items])
        found |= _property("length" + (f" of part {segment + 1}" if several else ""), lengths, n)
    return found
