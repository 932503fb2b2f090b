"""How many operations a device can do in a second at most."""

from typing import Literal

Dtype = Literal["bfloat16", "float32"]

# By `device.device_kind`: dense products in TFLOP/s, a multiplication and an addition being two, of operands in
# bfloat16, and in float32 as JAX multiplies these by default (jax.lax.Precision.DEFAULT): rounded to bfloat16 on a
# TPU, to TF32 on a GPU. JAX knows two names for some TPUs (jax/_src/pallas/mosaic/tpu_info.py). A GPU's name is the
# whole one of its driver: a part of a GPU (MIG) or another build has another name, and another peak.
_V5E, _V5P, _V6E = (197.0, 197.0), (459.0, 459.0), (918.0, 918.0)
_A100, _HOPPER = (312.0, 156.0), (989.4, 494.7)
PEAKS: dict[str, tuple[float, float]] = {
    # "Peak compute per chip" at cloud.google.com/tpu/docs/v4, and so on; JAX has one device per chip from v4 on.
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    # NVIDIA A100 Tensor Core GPU data sheet.
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    # NVIDIA H100 and H200 Tensor Core GPU data sheets, SXM, which print twice as much "with sparsity"; the H100
    # architecture white paper prints both.
    "NVIDIA H100 80GB HBM3": _HOPPER,
    "NVIDIA H200": _HOPPER,
}


def peak_flops(device_kind: str, dtype: Dtype) -> float | None:
    """Operations per second of matrix products of operands of a dtype; None for a device that is not in `PEAKS`."""
    if device_kind not in PEAKS:
        return None
    bfloat16, float32 = PEAKS[device_kind]
    return 1e12 * (bfloat16 if dtype == "bfloat16" else float32)
