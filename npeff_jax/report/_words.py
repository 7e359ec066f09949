"""Words that occur more often in the texts of a component's top examples than in all texts."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_WORD = re.compile(r"\w+(?:['’]\w+)*")

_DEVIATIONS = 4.0
"""Standard deviations by which a word must exceed its base rate: fewer than one in 10,000 words do by chance."""

_DIFFERENCE = 0.15
"""Difference in frequency by which a word must also exceed its base rate, which excludes rare words."""


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    """An index of the words in n texts.

    Attributes:
        names: (segment, word) of each entry; words of different segments are different entries.
        found: per text, the positions of its words in ``names``, each once.
        base: fraction of the texts that contain each word.
    """

    names: list[tuple[int, str]]
    found: list[Int[np.ndarray, "_"]]
    base: Float[np.ndarray, "words"]

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> "Words":
        """Index the words, in lower case, of texts in segments."""
        numbers: dict[tuple[int, str], int] = {}
        found = [
            np.array(
                sorted(
                    {
                        numbers.setdefault((segment, word), len(numbers))
                        for segment, text in enumerate(segments)
                        for word in _WORD.findall(text.lower())
                    }
                ),
                int,
            )
            for segments in texts
        ]
        counts = np.bincount(np.concatenate([np.empty(0, int), *found]), minlength=len(numbers))
        return cls(list(numbers), found, counts / max(len(found), 1))

    def typical(self, examples: Int[np.ndarray, "t"], most: int = 6) -> tuple[tuple[int, str, float, float], ...]:
        """Return the words that are significantly more frequent in the given examples than in all.

        Each entry is (segment, word, fraction of these examples, fraction of all), the largest difference first.
        """
        if not len(examples):
            return ()
        own = np.bincount(np.concatenate([self.found[i] for i in examples]), minlength=len(self.names)) / len(examples)
        more = own - self.base
        chance = np.sqrt(self.base * (1 - self.base) / len(examples))
        clear = np.flatnonzero((more >= _DIFFERENCE) & (more >= _DEVIATIONS * chance))
        chosen = clear[np.argsort(-more[clear], kind="stable")][:most]
        return tuple((*self.names[w], float(own[w]), float(self.base[w])) for w in chosen)
