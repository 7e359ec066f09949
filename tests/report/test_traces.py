"""Traces on cards: of the right examples, adding up over layers to what the model does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from npeff_jax import Model, component_direction
from npeff_jax.evaluation import top_examples
from npeff_jax.report import report_data, trace_components


def test_traces_add_up_to_the_derivative_of_the_logits(make, monkeypatch):
    random = np.random.default_rng(0)
    params = {f"layer_{i}": {"mlp": {"kernel": random.normal(size=(4, 4)).astype(np.float32)}} for i in range(2)}
    params["head"] = {"kernel": random.normal(size=(4, 3)).astype(np.float32)}

    def stages(params, x):
        first = jnp.tanh(x @ params["layer_0"]["mlp"]["kernel"])
        return {"first": first, "second": jnp.tanh(first @ params["layer_1"]["mlp"]["kernel"])}

    def logits(params, x):
        return stages(params, x)["second"].mean(0) @ params["head"]["kernel"]

    model = Model(logits, params, intermediates_fn=stages)
    results = make(r=3, heldout=20)
    layout = model.space.layout
    vectors = random.normal(size=(3, layout.size)).astype(np.float32)
    decomposition = dataclasses.replace(
        results.decomposition,
        schema=dataclasses.replace(results.decomposition.schema, layout=layout, model=model.fingerprint),
        pseudo_fishers=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        parameter_indices=np.arange(layout.size),
        coefficients=results.decomposition.coefficients[:, :3],
    )
    heldout = dataclasses.replace(results.heldout, schema=decomposition.schema)
    W, x = results.fit.coefficients[:20, :3], random.normal(size=(20, 5, 4)).astype(np.float32)
    traces = trace_components(model, decomposition, W, x, progress=False, positions=[list("abcde")] * 20)
    monkeypatch.setattr("npeff_jax.report._traces.MOST_PAIRS", 4)
    several = trace_components(model, decomposition, W, x, n_top=2, progress=False)
    for j, (alone, both) in enumerate(zip(traces, several, strict=True)):
        assert [trace.example for trace in both] == top_examples(W, j, 2).tolist()
        np.testing.assert_allclose(both[0].logits, alone[0].logits, rtol=1e-5)
    for j, (trace,) in enumerate(traces):
        assert trace.example == W[:, j].argmax()
        assert trace.layers == ("layer 0", "layer 1", "head")
        assert trace.positions == tuple("abcde")
        direction = component_direction(model, decomposition, j)
        derivative = jax.jvp(lambda p, i=trace.example: logits(p, x[i]), (params,), (direction,))[1]
        whole = np.asarray(derivative)[list(trace.classes)]
        np.testing.assert_allclose(np.sum(trace.logits, axis=0), whole, rtol=1e-4, atol=1e-6)
    data = report_data(decomposition, heldout, dataclasses.replace(results.fit, coefficients=W), traces=traces)
    assert data.components[1].traces == traces[1]
