"""What compiles for GPUs is collected where JAX's CUDA plug-in is installed, which needs no GPU."""

import importlib.util

import jax
import pytest

collect_ignore = [] if importlib.util.find_spec("jax_cuda12_plugin") else ["test_compiles_for_gpus.py", "test_steps.py"]


@pytest.fixture(autouse=True, scope="module")
def _fully_optimised():
    """Programs are compiled as users compile them: their memory is what is tested."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
