"""timm's and torchvision's names of a ViT's tensors and ours."""

import re

from plan_jax.config import ImageEncoderConfig
from plan_jax.weights.links import CONV, DENSE, SAME, Axes, Link

ANCHORS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_TORCHVISION = (
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
_QKV = ("query", "key", "value")


def vit_links(config: ImageEncoderConfig) -> list[Link]:
    """All tensors but the classifier."""
    links = [
        Link("cls_token", (("params", "class_token"),), SAME),
        Link("pos_embed", (("params", "position"),), SAME),
        Link("patch_embed.proj.weight", (("params", "patch_conv", "kernel"),), CONV),
        Link("patch_embed.proj.bias", (("params", "patch_conv", "bias"),), SAME),
        Link("norm.weight", (("params", "final_norm", "scale"),), SAME),
        Link("norm.bias", (("params", "final_norm", "bias"),), SAME),
    ]
    for layer in range(config.layers):
        theirs, ours = f"blocks.{layer}", ("params", "layers")
        dense = {
            "attn.qkv": tuple((*ours, "attention", name) for name in _QKV),
            "attn.proj": ((*ours, "attention", "output"),),
            "mlp.fc1": ((*ours, "intermediate"),),
            "mlp.fc2": ((*ours, "output"),),
        }
        for name, modules in dense.items():
            links.append(_link(f"{theirs}.{name}.weight", modules, "kernel", DENSE, layer))
            links.append(_link(f"{theirs}.{name}.bias", modules, "bias", SAME, layer))
        for name, norm in {"norm1": "attention_norm", "norm2": "mlp_norm"}.items():
            links.append(_link(f"{theirs}.{name}.weight", ((*ours, norm),), "scale", SAME, layer))
            links.append(_link(f"{theirs}.{name}.bias", ((*ours, norm),), "bias", SAME, layer))
    return links


def _link(name: str, modules: tuple[tuple[str, ...], ...], leaf: str, axes: Axes, layer: int) -> Link:
    return Link(name, tuple((*module, leaf) for module in modules), axes, layer)


def timm_name(name: str) -> str:
    """A tensor's name as timm writes it, from torchvision's."""
    for pattern, ours in _TORCHVISION:
        name = re.sub(pattern, ours, name)
    return name


def torchvision_name(name: str) -> str:
    """A tensor's name as torchvision writes it, from timm's."""
    name = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}.get(name, name)
    name = re.sub(r"^patch_embed\.proj\.", "conv_proj.", name)
    name = re.sub(r"^norm\.", "encoder.ln.", name)
    name = re.sub(r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1.", name)
    name = re.sub(r"\.norm([12])\.", r".ln_\1.", name)
    name = name.replace(".attn.qkv.", ".self_attention.in_proj_").replace(".attn.proj.", ".self_attention.out_proj.")
    return name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
