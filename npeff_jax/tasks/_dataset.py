"""`Dataset`: examples of a model with labels and display; and checks of labels against a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Int

from npeff_jax._checks import positions
from npeff_jax._examples import choose_examples, count_examples, slice_examples
from npeff_jax._types import Examples
from npeff_jax.models import Model
from npeff_jax.tasks._labels import check_class_numbers, generic, match_names, number_labels


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """n examples of a task.

    Attributes:
        examples: a pytree of arrays that share a leading axis n, or a sized source that can be sliced.
        labels: (n,) integers, class number of each example; or None. If labels are given as names, they are numbered as
            in ``label_names``, or in sorted order without it.
        display: n texts, pairs of texts, or images before encoding, which a report shows; or None.
        label_names: names of the classes, in the order of their numbers; None if they have no names.
        groups: (n,) integers, group of each example, such as the text that it is a position of; or None. A split keeps
            groups together.

    Raises:
        ValueError: labels, display and examples of different lengths, or a label that is not a class number.
    """

    examples: Examples
    labels: Any = None
    display: Any = None
    label_names: tuple[str, ...] | None = None
    groups: Any = None

    def __post_init__(self) -> None:
        n = count_examples(self.examples)
        if self.label_names is not None:
            if isinstance(self.label_names, str):
                raise TypeError(f"label_names={self.label_names!r} is one text; pass a name for each class")
            given = tuple(map(str, self.label_names))
            if len(set(given)) < len(given):
                raise ValueError(f"label_names={given} has a name twice; expected one for each class")
            object.__setattr__(self, "label_names", given or None)
        if self.labels is not None and np.asarray(self.labels).dtype.kind in "UO":
            cells = [(f"labels[{i}]", label) for i, label in enumerate(np.asarray(self.labels).tolist())]
            labels, names = number_labels(cells, self.label_names, None, "the data set")
            object.__setattr__(self, "labels", labels)
            object.__setattr__(self, "label_names", names)
        if self.labels is not None:
            n_classes = None if self.label_names is None else len(self.label_names)
            object.__setattr__(self, "labels", check_class_numbers(self.labels, n, n_classes))
        if self.groups is not None and np.shape(self.groups) != (n,):
            raise ValueError(f"groups has shape {np.shape(self.groups)}; expected ({n},), one group per example")
        if hasattr(self.display, "iloc"):  # pandas columns are indexed by labels, not by position
            object.__setattr__(self, "display", self.display.to_numpy())
        if self.display is not None and not hasattr(self.display, "__len__"):
            raise TypeError(
                f"display is a {type(self.display).__name__}; expected an entry for each of the {n} examples"
            )
        if self.display is not None and len(self.display) != n:
            raise ValueError(f"display has {len(self.display)} entries; expected one for each of the {n} examples")

    def __len__(self) -> int:
        return count_examples(self.examples)

    def subset(self, rows: Any) -> "Dataset":
        """Return some of the examples, chosen by slice, index array or Boolean mask."""
        index = positions("rows", rows, len(self))
        display = self.display
        if display is not None:
            display = display[index] if hasattr(display, "shape") else [display[i] for i in index]
        return dataclasses.replace(
            self,
            examples=choose_examples(self.examples, index),
            labels=None if self.labels is None else self.labels[index],
            display=display,
            groups=None if self.groups is None else np.asarray(self.groups)[index],
        )

    def relabel(self, label_map: Mapping[int, int], label_names: tuple[str, ...] | None = None) -> "Dataset":
        """Return the same examples with labels replaced according to a map, such as `LabelCheck.best_map`.

        Args:
            label_map: class of the model for each class of the data set.
            label_names: class names of the model.

        Raises:
            ValueError: a label has no entry in the map, or is mapped to something other than a class number.
        """
        if self.labels is None:
            raise ValueError("the data set has no labels to replace")
        if not isinstance(label_map, Mapping):
            raise TypeError(
                f"label_map is a {type(label_map).__name__}; expected {{class of the data: class of the model}}"
            )
        absent = sorted(set(self.labels.tolist()) - set(label_map))
        if absent:
            raise ValueError(f"label_map has no entry for the labels {absent}; it maps {sorted(label_map)}")
        labels = [label_map[label] for label in self.labels.tolist()]
        n_classes = None if label_names is None else len(label_names)
        return dataclasses.replace(
            self, labels=check_class_numbers(labels, len(self), n_classes), label_names=label_names
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCheck:
    """Agreement of a model's predictions with the labels of a data set. Prints as a table.

    Attributes:
        confusion: (classes of the data set, classes of the model), numbers of examples.
        data_names: class names of the data set.
        model_names: class names of the model.
        accuracy: accuracy with the labels as they are.
        best_map: one-to-one map from classes of the data set to classes of the model with the highest accuracy.
        best_accuracy: accuracy under that map.
    """

    confusion: Int[np.ndarray, "data_classes model_classes"]
    data_names: tuple[str, ...]
    model_names: tuple[str, ...]
    accuracy: float
    best_map: dict[int, int]
    best_accuracy: float

    @property
    def agrees(self) -> bool:
        """Whether no map of labels increases the accuracy by more than two standard errors."""
        n = self.confusion.sum()
        return bool(self.best_accuracy - self.accuracy <= 2 * np.sqrt(0.25 / n))

    @property
    def chance(self) -> float:
        """Expected accuracy of predictions with the same class frequencies but independent of the labels."""
        n, k = self.confusion.sum(), min(self.confusion.shape)
        return float(self.confusion.sum(1)[:k] @ self.confusion.sum(0)[:k] / n**2)

    @property
    def map_text(self) -> str:
        """`best_map` as text, with class names."""
        return ", ".join(f"{self.data_names[i]} → {self.model_names[j]}" for i, j in self.best_map.items())

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.data_names, *self.model_names, "data set / model")) + 2
        lines = ["data set / model".ljust(width) + "".join(name.rjust(width) for name in self.model_names)]
        for name, counts in zip(self.data_names, self.confusion):
            lines.append(name.ljust(width) + "".join(f"{count:{width}d}" for count in counts))
        lines.append(f"accuracy with labels as they are: {self.accuracy:.1%}")
        if not self.agrees:
            lines.append(
                f"accuracy with {self.map_text}: {self.best_accuracy:.1%}. The labels seem to be numbered differently; "
                "if so, continue with dataset.relabel(check.best_map, check.model_names)"
            )
        return "\n".join(lines)


def match_labels(dataset: Dataset, model: Model) -> Dataset:
    """Renumber the labels of a data set as classes of a model, matching by name if both have names.

    Args:
        dataset: a data set, with or without labels.
        model: a classifier.

    Returns:
        The same examples with classes of the model as labels, under the model's names.

    Raises:
        ValueError: names that cannot be matched (the message lists both), or a label that is not a class of the model.
    """
    if dataset.labels is None or len(dataset) == 0:
        return dataset
    names = model.label_names
    if dataset.label_names is not None and names is not None and not generic(names):
        labels, found = match_names(dataset.labels, dataset.label_names, names, "the data set", given=False)
        return dataclasses.replace(dataset, labels=labels, label_names=found)
    labels = check_class_numbers(dataset.labels, len(dataset), _n_classes(dataset, model))
    return dataclasses.replace(dataset, labels=labels, label_names=dataset.label_names or names)


def _n_classes(dataset: Dataset, model: Model) -> int:
    return model.n_classes(jax.tree.map(lambda leaf: leaf[0], slice_examples(dataset.examples, slice(0, 1))))


def check_labels(model: Model, dataset: Dataset, *, limit: int = 500, batch_size: int = 50) -> LabelCheck:
    """Compare a model's predictions with the labels of a data set, as numbered and under the best map of classes.

    This finds wrong label orders: checkpoints for natural language inference number entailment, neutral and
    contradiction in different orders, sometimes without names.

    Args:
        model: a classifier.
        dataset: a data set with labels.
        limit: number of examples to predict, from the first.
        batch_size: examples per batch.

    Raises:
        ValueError: the data set has no labels, or unnamed labels that are not classes of the model.
    """
    if dataset.labels is None:
        raise ValueError("the data set has no labels to check")
    if limit < 1 or batch_size < 1:
        raise ValueError(f"limit={limit} and batch_size={batch_size}; expected both to be at least 1")
    n = min(limit, len(dataset))
    if n == 0:
        raise ValueError("the data set has no examples to check")
    n_model = _n_classes(dataset, model)
    n_data = len(dataset.label_names) if dataset.label_names is not None else n_model
    labels = check_class_numbers(dataset.labels, len(dataset), n_data)[:n]
    predict = jax.jit(jax.vmap(lambda params, x: model.logits_fn(params, x).argmax(-1), (None, 0)))
    batches = [slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    found = [np.asarray(predict(model.params, slice_examples(dataset.examples, rows))) for rows in batches]
    confusion = np.zeros((n_data, n_model), int)
    np.add.at(confusion, (labels, np.concatenate(found)), 1)
    rows, columns = scipy.optimize.linear_sum_assignment(confusion, maximize=True)
    return LabelCheck(
        confusion,
        dataset.label_names or tuple(map(str, range(n_data))),
        model.label_names or tuple(map(str, range(n_model))),
        accuracy=float(np.trace(confusion) / n),  # entries (i, i); the table need not be square
        best_map={int(i): int(j) for i, j in zip(rows, columns)},
        best_accuracy=float(confusion[rows, columns].sum() / n),
    )
