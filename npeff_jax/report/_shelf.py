"""The examples that a report chooses from, with their coefficients, predictions and labels."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float, Int

from npeff_jax.factorization import Decomposition
from npeff_jax.models import Gaussian, Generated, Model
from npeff_jax.pefs import Pefs
from npeff_jax.report._display import Display, Texts
from npeff_jax.report._examples import likeliest_pairs
from npeff_jax.report._words import Words


@dataclasses.dataclass(frozen=True, eq=False)
class Shelf:
    """All n examples that a report chooses from.

    Attributes:
        coefficients: (n, r), W.
        probabilities: (n, C), class probabilities; (n, 0) if outputs are unknown or not a distribution over classes.
        outputs: (n, d), outputs of the model, if they are not a distribution over classes.
        predicted: (n,), the likeliest class; zeros without classes.
        pairs: (n, 2), the two likeliest of three or more classes.
        labels: (n,), labels of the data set.
        held_out: whether the coefficients were fitted to given components rather than found with them.
        pefs: PEFs of the examples, if given.
        words: words of the texts, if examples are shown as text.
        usable: positions of examples with finite predictions; others are neither shown nor counted.
    """

    coefficients: Float[np.ndarray, "n r"]
    probabilities: Float[np.ndarray, "n C"]
    outputs: Float[np.ndarray, "n outputs"] | None
    predicted: Int[np.ndarray, "n"]
    pairs: Int[np.ndarray, "n 2"] | None
    labels: Int[np.ndarray, "n"] | None
    held_out: bool
    pefs: Pefs | None
    words: Words | None
    usable: Int[np.ndarray, "k"]

    @property
    def n_classes(self) -> int:
        """C, or 0 if the predictions are unknown or not class probabilities."""
        return self.probabilities.shape[1]


def shelf_of(
    decomposition: Decomposition,
    pefs: Pefs | None,
    fitted: Float[np.ndarray, "n r"] | None,
    model: Model | None,
    display: Display | None,
) -> Shelf:
    """Return the examples of ``pefs`` with coefficients ``fitted``, or the decomposed ones if ``fitted`` is None."""
    coefficients = np.nan_to_num(np.asarray(decomposition.coefficients if fitted is None else fitted))
    n = len(coefficients)
    usable = np.arange(n) if pefs is None else np.flatnonzero(np.isfinite(np.asarray(pefs.logits, np.float32)).all(1))
    probabilities, outputs, predicted, labels = np.zeros((n, 0)), None, np.zeros(n, int), None
    if pefs is not None:
        logits, output = np.asarray(pefs.logits, np.float32), None if model is None else model.output
        if isinstance(output, Gaussian | Generated) or logits.shape[1] < 2:
            outputs = logits
        else:
            softened = jax.nn.softmax if output is None else output.probabilities
            probabilities, predicted = np.asarray(jax.vmap(softened)(jax.numpy.asarray(logits))), logits.argmax(-1)
            labels = None if pefs.labels is None else _check_labels(np.asarray(pefs.labels), logits.shape[1])
    return Shelf(
        coefficients=coefficients,
        probabilities=probabilities,
        outputs=outputs,
        predicted=predicted,
        pairs=likeliest_pairs(probabilities) if probabilities.shape[1] > 2 else None,
        labels=labels,
        held_out=fitted is not None,
        pefs=pefs,
        words=Words.of(display.segments) if isinstance(display, Texts) else None,
        usable=usable,
    )


def _check_labels(labels: Int[np.ndarray, "n"], n_classes: int) -> Int[np.ndarray, "n"]:
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        raise ValueError(
            f"heldout.labels[{wrong[0]}] is {labels[wrong[0]]}; the model has the classes 0 to {n_classes - 1}. "
            "Correct the labels, or leave them out: dataclasses.replace(heldout, labels=None)"
        )
    return labels
