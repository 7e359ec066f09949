"""On disk: zarr3 arrays through TensorStore, and a manifest that says how much of them is committed."""
