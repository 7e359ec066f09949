"""`Dataset`: examples as a model takes them, their labels, and what a person looks at."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from npeff_jax._examples import choose_examples, count_examples
from npeff_jax._types import Examples


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """n examples of a task.

    Attributes:
        examples: a pytree of arrays that share a leading axis n, or a sized source that can be sliced.
        labels: (n,), the class of each as the data set numbers them, or None.
        display: n texts, pairs of texts, or images, as they were before encoding; what a report shows.
        label_names: of the classes, in the order of the numbers; None if the data set does not name them.
    """

    examples: Examples
    labels: Int[np.ndarray, "n"] | None
    display: Any
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return count_examples(self.examples)

    def subset(self, rows: Any) -> "Dataset":
        """Some examples, by slice, index array or Boolean mask."""
        index = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            examples=choose_examples(self.examples, index),
            labels=None if self.labels is None else self.labels[index],
            display=self.display[index] if hasattr(self.display, "shape") else [self.display[i] for i in index],
        )

    def relabel(self, label_map: Mapping[int, int], label_names: tuple[str, ...] | None = None) -> "Dataset":
        """The same examples with each label replaced, for instance by `LabelCheck.best_map`.

        Args:
            label_map: the model's class for each class of the data set.
            label_names: the model's names.

        Raises:
            ValueError: a label has no entry in the map.
        """
        if self.labels is None:
            raise ValueError("the data set has no labels to replace")
        absent = sorted(set(self.labels.tolist()) - set(label_map))
        if absent:
            raise ValueError(f"label_map has no entry for the labels {absent}; it maps {sorted(label_map)}")
        labels = np.array([label_map[label] for label in self.labels.tolist()], np.int32)
        return dataclasses.replace(self, labels=labels, label_names=label_names)
