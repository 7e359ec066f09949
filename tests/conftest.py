"""Eight CPU devices for every test, and every annotated shape and type checked while the tests run."""

import jax
import jaxtyping

# Before any other JAX call: afterwards it raises. Without a mesh everything still runs on one device, JAX's default.
jax.config.update("jax_num_cpu_devices", 8)

jaxtyping.install_import_hook("npeff_jax", "beartype.beartype")
