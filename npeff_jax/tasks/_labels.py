"""Do a data set and a model mean the same by class 0? Checked by accuracy, shown, and never changed silently."""

import dataclasses

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Int

from npeff_jax._examples import slice_examples
from npeff_jax.models import Model
from npeff_jax.tasks._dataset import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class LabelCheck:
    """How a model's predictions meet a data set's labels. Printed, it is a table.

    Attributes:
        confusion: (data set's classes, model's classes), counts of examples.
        data_names: of the data set's classes.
        model_names: of the model's.
        accuracy: with labels as they are.
        best_map: the model's class for each of the data set's under which the model is most accurate.
        best_accuracy: under that map.
    """

    confusion: Int[np.ndarray, "data_classes model_classes"]
    data_names: tuple[str, ...]
    model_names: tuple[str, ...]
    accuracy: float
    best_map: dict[int, int]
    best_accuracy: float

    @property
    def agrees(self) -> bool:
        """Whether no map of labels makes the model clearly more accurate.

        Clearly: by more than two standard errors of an accuracy on so many examples, beyond which chance is no excuse.
        """
        n = self.confusion.sum()
        return bool(self.best_accuracy - self.accuracy <= 2 * np.sqrt(0.25 / n))

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.data_names, *self.model_names, "data set / model")) + 2
        lines = ["data set / model".ljust(width) + "".join(name.rjust(width) for name in self.model_names)]
        for name, counts in zip(self.data_names, self.confusion):
            lines.append(name.ljust(width) + "".join(f"{count:{width}d}" for count in counts))
        lines.append(f"accuracy with labels as they are: {self.accuracy:.1%}")
        if not self.agrees:
            told = ", ".join(f"{self.data_names[i]} → {self.model_names[j]}" for i, j in self.best_map.items())
            lines.append(
                f"accuracy with {told}: {self.best_accuracy:.1%}. The labels seem to be numbered differently; "
                "if so, continue with dataset.relabel(check.best_map, check.model_names)"
            )
        return "\n".join(lines)


def check_labels(model: Model, dataset: Dataset, *, limit: int = 500, batch_size: int = 50) -> LabelCheck:
    """Compare a model's predictions with a data set's labels, as numbered and under the best one-to-one map of classes.

    Checkpoints for natural language inference are known for numbering entailment, neutral and contradiction in every
    order, sometimes without saying which.

    Args:
        model: a classifier.
        dataset: with labels.
        limit: examples to predict, the first ones.
        batch_size: predicted at a time.

    Raises:
        ValueError: the data set has no labels.
    """
    if dataset.labels is None:
        raise ValueError("the data set has no labels to check")
    n = min(limit, len(dataset))
    predict = jax.jit(jax.vmap(lambda params, x: model.logits_fn(params, x).argmax(-1), (None, 0)))
    batches = [slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    found = [np.asarray(predict(model.params, slice_examples(dataset.examples, rows))) for rows in batches]
    n_model = model.n_classes(jax.tree.map(lambda leaf: leaf[0], slice_examples(dataset.examples, slice(0, 1))))
    labels = dataset.labels[:n]
    n_data = max(len(dataset.label_names or ()), int(labels.max()) + 1)
    confusion = np.zeros((n_data, n_model), int)
    np.add.at(confusion, (labels, np.concatenate(found)), 1)
    rows, columns = scipy.optimize.linear_sum_assignment(confusion, maximize=True)
    return LabelCheck(
        confusion,
        dataset.label_names or tuple(map(str, range(n_data))),
        model.label_names or tuple(map(str, range(n_model))),
        accuracy=float(np.trace(confusion) / n),  # of a table that need not be square: entries (i, i)
        best_map={int(i): int(j) for i, j in zip(rows, columns)},
        best_accuracy=float(confusion[rows, columns].sum() / n),
    )
