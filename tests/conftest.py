"""Eight CPU devices for every test, and every annotated shape and type checked while the tests run."""

import atexit
import ctypes
import functools
import gc
import importlib.metadata
import inspect
import os
import pathlib
import shutil
import tempfile
import typing

# Most of the suite's time is compilation, often of the same program in another test, worker or child process: they
# share what is compiled, in a folder of this run alone. Set before JAX is imported; workers and children inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="npeff-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Programs run once or twice here, on small arrays, so that optimising them takes longer than it saves; the oracles hold
# either way. Optimised programs run in `.ci/run` (demos, notebooks, the paper's experiments) and, with these two
# variables set otherwise, in the whole suite of `.ci/weekly`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older elementwise emitters compile faster. XLA ends the process at a flag that it does not know, so only the
# version that was tried gets it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import beartype
import jax
import jaxtyping
import pytest

# Before any other JAX call: afterwards it raises. Without a mesh everything still runs on one device, JAX's default.
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many small objects beside the million that imports leave. At Python's own thresholds the collector went
# through all of them again and again, for 5 to 25% of the time of a file.
gc.set_threshold(50_000, 20, 10)


# Workers take whole files in this order, the longest first. Without `--no-loadscope-reorder` the
# files with the most tests would come first, and a few long tests last, with the other worker idle.
LONGEST = (
    "test_user_story.py",
    "test_switches.py",
    "test_huggingface_torch.py",
    "test_torch.py",
    "test_huggingface_to_report.py",
    "test_tunings.py",
    "test_rows.py",
    "test_device_selection.py",
    "test_devices.py",
    "test_processes.py",
    "test_language.py",
    "test_explain_command.py",
    "test_options.py",
    "test_language_models.py",
    "test_readme_analyses.py",
    "test_getting_started.py",
    "test_tracr.py",
    "test_page_extremes.py",
    "test_docstrings.py",
    "test_padding.py",
    "test_stages.py",
    "test_readme_example.py",
    "test_inference.py",
    "test_selectivity.py",
    "test_huggingface.py",
    "test_sketch.py",
    "test_refused.py",
    "test_frameworks.py",
    "test_released.py",
    "test_choices.py",
    "test_own.py",
    "test_starts.py",
    "test_audit.py",
    "test_outputs.py",
    "test_pieces.py",
    "test_bert_tracing.py",
    "test_plan_parameters.py",
    "test_compare.py",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


_MOST = _most = 2e9
"""Resident bytes of a worker above which it forgets what was compiled."""


# Compiled programs and traces of a module are of no use to the next one, and a worker kept five gigabytes of them.
@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    global _most
    yield
    if _resident_bytes() > _most:
        jax.clear_caches()
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # otherwise glibc keeps most of what was freed
        _most = max(_MOST, _resident_bytes() + 5e8)  # what the allocator keeps is no reason to compile again


def _resident_bytes() -> float:
    statm = pathlib.Path("/proc/self/statm")  # Linux alone has it; elsewhere nothing is forgotten
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0.0


_with_shapes = jaxtyping.jaxtyped
_types_alone = beartype.beartype(conf=beartype.BeartypeConf(violation_type=TypeError))  # as jaxtyping raises


# Names of axes have to be followed only where there are any. For other functions beartype's own check is the same, and
# takes half the time at import and a twentieth at each call (0.4 µs instead of 9).
def _checked(function=None, *, typechecker):
    if function is None:
        return functools.partial(_checked, typechecker=typechecker)
    if inspect.isfunction(function) and not any(map(_may_have_shapes, function.__annotations__.values())):
        return _types_alone(function)
    return _with_shapes(function, typechecker=typechecker)


def _may_have_shapes(annotation) -> bool:
    if parts := typing.get_args(annotation):
        return any(map(_may_have_shapes, parts))
    plain = annotation in (None, ..., typing.Any) or isinstance(annotation, type)
    return not plain or getattr(annotation, "__module__", "").startswith("jaxtyping")


jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("npeff_jax", "beartype.beartype")


def pytest_configure(config):
    if config.getoption("numprocesses", 0) and not hasattr(config, "workerinput"):
        return  # this process hands out the tests, and needs no package
    import npeff_jax.factorization._compile as _compile

    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":  # factorization has options of its own
        _compile.CPU_OPTIONS["xla_backend_optimization_level"] = 0
