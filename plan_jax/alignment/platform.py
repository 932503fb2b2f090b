"""What the program that is being traced will run on."""

import jax

TPU, GPU = ("tpu",), ("gpu", "cuda")


def platform_here() -> str:
    """The platform of the mesh in force, whose devices may not be here, or of the default device."""
    return getattr(_device(), "platform", None) or jax.default_backend()


def device_kind() -> str:
    """The kind of its devices, such as "TPU v5 lite"; "" where no mesh is in force."""
    return getattr(_device(), "device_kind", "")


def _device() -> object | None:
    return jax.sharding.get_abstract_mesh().abstract_device
