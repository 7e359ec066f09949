"""Names of parameters of the frameworks, and where a person would say they live."""

import numpy as np
import pytest

from npeff_jax._parameters import Parameter, ParameterLayout
from npeff_jax.report._places import kind_of, layer_of, places_of

pytestmark = pytest.mark.fast

NAMES = [
    ("Conv_0/kernel", "Conv_0", "convolution"),
    ("Dense_0/bias", "Dense_0", "dense"),
    ("BatchNorm_1/scale", "BatchNorm_1", "norm"),
    ("embeddings/word_embeddings/embedding", "embeddings", "embedding"),
    ("embeddings/LayerNorm/scale", "embeddings", "norm"),
    ("encoder/layer_3/attention/query/kernel", "layer 3", "attention"),
    ("bert/encoder/layer/11/attention/self/value/bias", "layer 11", "attention"),
    ("bert/encoder/layer/11/attention/output/LayerNorm/scale", "layer 11", "norm"),
    ("bert/encoder/layer/2/intermediate/dense/kernel", "layer 2", "feed-forward"),
    ("classifier/kernel", "classifier", "head"),
    ("h_5/mlp/c_fc/kernel", "layer 5", "feed-forward"),
    ("h_5/attn/c_attn/kernel", "layer 5", "attention"),
    ("wte/embedding", "embeddings", "embedding"),
    ("transformer/layer_0/attn/query/w", "layer 0", "attention"),
    ("transformer/layer_12/mlp/linear_1/w", "layer 12", "feed-forward"),
    ("token_embed/embeddings", "embeddings", "embedding"),
    ("word_embeddings/embedding", "embeddings", "embedding"),
    ("embeddings_norm/scale", "embeddings", "norm"),
    ("layer_0/attention_norm/bias", "layer 0", "norm"),
    ("layer_0/attention/output/kernel", "layer 0", "attention"),
    ("layer_0/output/kernel", "layer 0", "feed-forward"),
    ("bert/encoder/layer/2/output/dense/kernel", "layer 2", "feed-forward"),
    ("pooler/kernel", "pooler", "head"),
    ("layers_4/self_attn/q_proj/kernel", "layer 4", "attention"),
]


@pytest.mark.parametrize(("name", "layer", "kind"), NAMES, ids=[name for name, _, _ in NAMES])
def test_layer_and_kind(name, layer, kind):
    assert (layer_of(name), kind_of(name)) == (layer, kind)


def test_layers_stand_in_the_order_of_the_computation():
    names = ["classifier/kernel", "pooler/kernel", "embeddings/word/embedding"]
    names += [f"encoder/layer_{i}/attention/query/kernel" for i in (10, 2, 0)]
    places = places_of(ParameterLayout(tuple(Parameter(name, (3,), 3 * i) for i, name in enumerate(names))))
    assert places.layers == ("embeddings", "layer 0", "layer 2", "layer 10", "pooler", "classifier")
    assert places.kinds == ("embedding", "attention", "head")


def test_linens_automatic_names_stand_in_order_too():
    names = ["Conv_0/kernel", "Dense_0/kernel", "Conv_1/kernel"]
    places = places_of(ParameterLayout(tuple(Parameter(name, (3,), 3 * i) for i, name in enumerate(names))))
    assert places.layers == ("Conv_0", "Conv_1", "Dense_0")


def test_tables_sum_what_falls_into_a_cell():
    names = ["layer_0/attention/query/w", "layer_0/attention/key/w", "layer_0/mlp/up/w"]
    places = places_of(ParameterLayout(tuple(Parameter(name, (2,), 2 * i) for i, name in enumerate(names))))
    np.testing.assert_array_equal(places.sizes, [[4, 2]])
    np.testing.assert_array_equal(places.table(np.array([1.0, 2.0, 5.0])), [[3, 5]])
