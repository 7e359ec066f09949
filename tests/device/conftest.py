"""What compiles for GPUs is collected where JAX's CUDA plug-in is installed, which needs no GPU."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("jax_cuda12_plugin") else ["test_compiles_for_gpus.py", "test_steps.py"]
