"""For what kind of machine a program is being made."""

import jax


def made_for() -> str:
    """ "cpu", "gpu" or "tpu": that of the mesh in whose context a program is traced, which need not be here, otherwise of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return str(device.platform) if device else jax.default_backend()
