"""Plans for groups of parameters of a model, such as its attention layers or its last layer."""

import dataclasses
import glob
import re
from collections.abc import Mapping
from typing import Any

from npeff_jax._checks import check_integer
from npeff_jax._machine import size_text
from npeff_jax._parameters import Mask
from npeff_jax._types import Examples
from npeff_jax.models import Model, check_model
from npeff_jax.pefs._plan import RunPlan, duration, plan
from npeff_jax.pefs.representations import Representation

KINDS = {
    "LoRA": r"lora_",
    "attention": r"attn|attention|query|key|value|[qkvo]_proj|[qkv]_lin|c_attn|qkv",
    "feed-forward": r"mlp|ffn|feed_?forward|intermediate|experts?\b|(gate|up|down)_proj|fc\d?\b|lin[12]\b",
    "embeddings": r"embed|wte|wpe",
    "norms": r"norm|\bln_|layernorm",
    "head": r"lm_head|classifier|score\b|\bhead\b",
}
"""Patterns of the names that frameworks use for parts of a network. A parameter may be in several groups."""

_LAYER = re.compile(r"(?:layers?|h|blocks?|stages?)[._/](\d+)")


def parameter_choices(model: Model) -> dict[str, tuple[str, ...]]:
    """Return groups of a model's explained parameters according to their names, each usable as a ``mask``.

    The groups are: all; attention, feed-forward, embeddings, norms, head and LoRA; the last layer, and the last half of
    the layers. Groups without parameters, or equal to all parameters, are left out.

    Args:
        model: the model.

    Examples:
        >>> params = {"layer_0": {"attention": jnp.ones(2)}, "layer_1": {"attention": jnp.ones(2), "mlp": jnp.ones(3)}}
        >>> list(parameter_choices(Model(lambda p, x: x, params)))
        ['all', 'attention', 'feed-forward', 'last layer']
    """
    names = [parameter.name for parameter in check_model(model).space.layout.parameters]
    groups = {kind: [n for n in names if re.search(pattern, n, re.IGNORECASE)] for kind, pattern in KINDS.items()}
    layers = {name: int(found[1]) for name in names if (found := _LAYER.search(name.replace("layer_", "layer/")))}
    numbers = sorted(set(layers.values()))
    if len(numbers) > 1:
        groups["last layer"] = [n for n, layer in layers.items() if layer == numbers[-1]]
    if len(numbers) > 3:
        groups["last half of the layers"] = [n for n, layer in layers.items() if layer >= numbers[len(numbers) // 2]]
    chosen = {"all": names} | {kind: own for kind, own in groups.items() if 0 < len(own) < len(names)}
    return {kind: tuple(glob.escape(name) for name in own) for kind, own in chosen.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterPlans:
    """A `RunPlan` per choice of parameters. Prints as a table.

    Attributes:
        choices: mask of each choice.
        n_parameters: m of each choice.
        plans: plan of each choice that fits in memory.
        refused: why the other choices do not fit.
    """

    choices: dict[str, Any]
    n_parameters: dict[str, int]
    plans: dict[str, RunPlan]
    refused: dict[str, str]

    def __str__(self) -> str:
        heads = ("parameters", "m", "memory", "time", "keep", "error")
        rows = [heads]
        for name, m in self.n_parameters.items():
            if name in self.refused:
                rows.append((name, f"{m:,}", "does not fit", "", "", ""))
                continue
            one = self.plans[name]
            error = float(one.fisher_error[one.keep.index(one.suggested_keep)])
            time = f"{duration(one.seconds)} + {one.compile_seconds:.0f} s"
            rows.append((name, f"{m:,}", size_text(one.memory_bytes), time, f"{one.suggested_keep:,}", f"{error:.2f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name}: {told}" for name, told in self.refused.items())])


def plan_parameters(
    model: Model,
    examples: Examples,
    representation: Representation | type[Representation] | None = None,
    *,
    choices: Mapping[str, Mask] | None = None,
    n_sampled: int = 2,
    **options: Any,
) -> ParameterPlans:
    """Estimate the cost of explaining each of several choices of parameters: m, memory, time and suggested K.

    Args:
        model: the model, whose mask is replaced by each choice.
        examples: as for `plan`.
        representation: as for `plan`.
        choices: masks by name; by default `parameter_choices`.
        n_sampled: number of examples to measure per choice.
        **options: further arguments of `plan`.

    Returns:
        The plans; ``dataclasses.replace(model, mask=plans.choices[name])`` is the model of a choice.

    Raises:
        ValueError: no choices, a choice without parameters, or an error of `plan` other than insufficient memory.
    """
    check_model(model)
    n_sampled = check_integer("n_sampled", n_sampled)
    masks = dict(parameter_choices(model) if choices is None else choices)
    if not masks:
        raise ValueError("choices is empty; pass {name: mask, ...}, or leave it out")
    models = {name: dataclasses.replace(model, mask=mask) for name, mask in masks.items()}
    sizes = {name: one.space.size for name, one in models.items()}  # checks all before measuring
    plans, refused = {}, {}
    for name, one in models.items():
        try:
            plans[name] = plan(one, examples, representation, n_sampled=n_sampled, **options)
        except ValueError as error:
            if "are free for it" not in str(error):
                raise
            refused[name] = str(error)
    return ParameterPlans(masks, sizes, plans, refused)
