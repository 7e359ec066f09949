"""Models from programs compiled by Tracr: the transformer's forward pass in plain JAX, with logits before the argmax.

Tracr (Lindner et al., 2023) compiles a RASP program to the weights of a transformer without layer normalisation. Its
own forward pass returns the argmax of the outputs. Here the unembedding, a constant of the compiled model that is not
among its parameters, is recovered once and applied to the residual stream at one position.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from npeff_jax._types import Example, PyTree
from npeff_jax.models._model import Model
from npeff_jax.models._outputs import Categorical, Gaussian, Output

MASKED = -1e30  # attention logit of a masked position, as in Tracr


def from_tracr(
    compiled: Any,
    *,
    position: int = -1,
    temperature: float = 1.0,
    scale: float = 1.0,
    padding: bool = True,
    **options: Any,
) -> Model:
    """Make a model from a program compiled by Tracr, from its output at one position.

    Every weight of the compiled transformer is a parameter, under the name Tracr gives it. A categorical program has
    one logit per output value, which is 1 for the program's result and 0 otherwise. With three values, a softmax gives
    the result a probability of only 0.576; lower the temperature for confident predictions. A numerical program has one
    output, the mean of a normal distribution.

    Args:
        compiled: result of ``tracr.compiler.compiling.compile_rasp_to_model``.
        position: token whose output is used, not counting the BOS token that the compiler adds at the start; by default
            the last.
        temperature: temperature of the softmax, for categorical programs.
        scale: standard deviation of the output, for numerical programs.
        padding: whether to keep padding parameters. Tracr gives every layer the heads and hidden units of the largest
            layer; unused ones have zero weights and never a gradient. In a deep program they are most of the
            parameters. Without them, outputs and Fishers are the same in a fraction of the time.
        **options: further fields of `Model`, such as ``mask``.

    Returns:
        A model of examples made by `encode_tokens`. Its ``intermediates_fn`` gives the residual stream (T, D) after the
        embedding and after every block (``layer_0/attn``, ``layer_0/mlp`` and so on), and finally ``output``, the (D,)
        vector at the position.

    Examples:
        >>> from tracr.compiler.compiling import compile_rasp_to_model
        >>> from tracr.rasp import rasp
        >>> same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
        >>> compiled = compile_rasp_to_model(rasp.SelectorWidth(same), {"a", "b"}, max_seq_len=3)
        >>> model = from_tracr(compiled, position=0)
        >>> [int(i) for i in model.logits_fn(model.params, encode_tokens(compiled, "aab")).round()]
        [0, 0, 1, 0]
    """
    unembedding = _unembedding(compiled)
    residuals = _residual_stream(compiled.model_config)
    encoder = compiled.input_encoder
    first = 1 if encoder.enforce_bos else 0

    def place(tokens: Example) -> int:
        length = np.shape(tokens)[-1] - first
        if not -length <= position < length:
            raise ValueError(f"position={position} is out of range for an input of {length} tokens")
        return first + position % length

    def intermediates_fn(params: PyTree, tokens: Example) -> dict[str, jax.Array]:
        stream = dict(residuals(params, jnp.asarray(tokens)))
        return stream | {"output": next(reversed(stream.values()))[place(tokens)]}

    def logits_fn(params: PyTree, tokens: Example) -> jax.Array:
        return intermediates_fn(params, tokens)["output"] @ unembedding

    # Only the decoder of a categorical program has a table of values.
    values = getattr(compiled.output_encoder, "encoding_map", None)
    output: Output = Gaussian(scale) if values is None else Categorical(temperature)
    names = None if values is None else tuple(str(value) for value in values)
    held = {"unembedding": np.asarray(unembedding), "position": position, "padding": padding}
    fields = {"output": output, "label_names": names, "intermediates_fn": intermediates_fn, "constants": held} | options
    params = compiled.params if padding else _without_padding(compiled.params, compiled.model_config)
    return Model(logits_fn, params, **fields)


def encode_tokens(compiled: Any, tokens: Sequence[Any]) -> Int[np.ndarray, "*n T"]:
    """Encode one input, or several of equal length, as token ids that begin with the BOS token.

    Args:
        compiled: result of ``compile_rasp_to_model``.
        tokens: one input, a sequence of tokens of the program's vocabulary, or a list of inputs. The BOS token may be
            omitted.

    Returns:
        Ids (T,) of one input, or (n, T) of n inputs, where T is the number of tokens plus one.

    Raises:
        ValueError: a token outside the vocabulary, an empty or too long input, or inputs of different lengths (they
            cannot be padded, because the program sees padding tokens).
    """
    table = compiled.input_encoder.encoding_map
    one = len(tokens) > 0 and not isinstance(tokens[0], list | tuple)
    inputs = [tokens] if one else list(tokens)
    lengths = sorted({len(entry) for entry in inputs})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f"tokens has inputs of lengths {lengths}; expected inputs of one length, at least 1")
    bos = compiled.input_encoder.bos_token if compiled.input_encoder.enforce_bos else None
    rows = [list(entry) if bos is None or entry[0] == bos else [bos, *entry] for entry in inputs]
    unknown = [token for token in itertools.chain.from_iterable(rows) if token not in table]
    if unknown:
        raise ValueError(f"token {unknown[0]!r} is not in the program's vocabulary: {sorted(map(str, table))}")
    longest = np.shape(compiled.params["pos_embed"]["embeddings"])[0]
    if len(rows[0]) > longest:
        raise ValueError(f"inputs of {lengths[0]} tokens are too long; the program was compiled for {longest - 1}")
    ids = np.array([[table[token] for token in row] for row in rows], np.int32)
    return ids[0] if one else ids


def _without_padding(params: PyTree, config: Any) -> PyTree:
    """Remove unused heads and hidden units from the parameters. Output biases stay, because they have gradients."""
    kept = {name: dict(module) for name, module in params.items()}
    for layer in range(config.num_layers):
        name = f"transformer/layer_{layer}"
        units = _used(params, f"{name}/mlp/linear_1", f"{name}/mlp/linear_2", 1)
        heads = _used(params, f"{name}/attn/value", f"{name}/attn/linear", config.key_size)
        inner = [
            (f"{name}/mlp/linear_1", units),
            *((f"{name}/attn/{part}", heads) for part in ("query", "key", "value")),
        ]
        for module, used in inner:
            if used.any():
                kept[module] = {part: leaf[..., used] for part, leaf in params[module].items()}
            else:
                del kept[module]
        for module, used in ((f"{name}/mlp/linear_2", units), (f"{name}/attn/linear", heads)):
            if used.any():
                kept[module]["w"] = params[module]["w"][used]
            else:
                del kept[module]["w"]
    return kept


def _used(params: PyTree, first: str, second: str, size: int) -> Bool[np.ndarray, "units"]:
    """Return which units between two linear maps have a non-zero weight, in whole blocks of ``size`` units."""
    reads, writes = np.asarray(params[first]["w"]).any(0), np.asarray(params[second]["w"]).any(1)
    return np.repeat((reads | writes).reshape(-1, size).any(1), size)


def _unembedding(compiled: Any) -> jax.Array:
    """Return the (D, C) matrix from residual stream to outputs: the compiled unembedding applied to the identity."""
    import haiku as hk

    width = np.shape(compiled.params["token_embed"]["embeddings"])[1]

    def unembed(x: jax.Array) -> jax.Array:
        return compiled.get_compiled_model().unembed(x, use_unembed_argmax=False)

    transformed: Any = hk.without_apply_rng(hk.transform(unembed))
    return transformed.apply(compiled.params, jnp.eye(width)).reshape(width, -1)


def _residual_stream(config: Any) -> Callable[[PyTree, jax.Array], Iterator[tuple[str, jax.Array]]]:
    """Return Tracr's forward pass, which yields the name of each block and the residual stream (T, D) after it."""

    def dense(params: PyTree, x: jax.Array) -> jax.Array:
        return x @ params["w"] + params["b"]

    def attention(params: PyTree, name: str, x: jax.Array) -> jax.Array:
        length = x.shape[0]
        if f"{name}/value" not in params:
            return params[f"{name}/linear"]["b"]

        def heads(part: str) -> jax.Array:
            return dense(params[f"{name}/{part}"], x).reshape(length, -1, config.key_size)

        scores = jnp.einsum("thd,Thd->htT", heads("query"), heads("key")) / np.sqrt(config.key_size).astype(x.dtype)
        if config.causal:
            scores = jnp.where(np.tril(np.ones((length, length), bool)), scores, MASKED)
        mixed = jnp.einsum("htT,Thd->thd", jax.nn.softmax(scores), heads("value"))
        return dense(params[f"{name}/linear"], mixed.reshape(length, -1))

    def mlp(params: PyTree, name: str, x: jax.Array) -> jax.Array:
        if f"{name}/linear_1" not in params:
            return params[f"{name}/linear_2"]["b"]
        return dense(params[f"{name}/linear_2"], config.activation_function(dense(params[f"{name}/linear_1"], x)))

    def stream(params: PyTree, tokens: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        table, positions = params["token_embed"]["embeddings"], params["pos_embed"]["embeddings"]
        x = jnp.asarray(table)[tokens] + positions[: tokens.shape[0]]
        yield "embedding", x
        for layer in range(config.num_layers):
            name = f"transformer/layer_{layer}"
            x = x + attention(params, f"{name}/attn", x)
            yield f"layer_{layer}/attn", x
            x = x + mlp(params, f"{name}/mlp", x)
            yield f"layer_{layer}/mlp", x

    return stream
