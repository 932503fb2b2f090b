"""Asks torchvision, transformers and timm for the values that tests/test_golden.py expects, in float64.

    pip install torch torchvision timm transformers      # in an environment of its own; CPU builds serve
    python tests/golden/make.py [--check]

--check compares with the stored values instead of writing them.
"""

# pyright: reportMissingImports=false

import sys

import numpy as np
import torch

# A torchvision without its compiled operators, which some platforms have, refuses to import; its models need none.
_register = torch.library.register_fake


def _register_known(op, *arguments, **options):
    known = not (isinstance(op, str) and op.startswith("torchvision::"))
    return _register(op, *arguments, **options) if known else lambda function: function


torch.library.register_fake = _register_known

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from cases import BERTS, FOLDER, RESNETS, VITS, direction, drawn, image, load, reports, summary  # noqa: E402


def fill(model):
    """Numbers from names, in float64."""
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.tensor(drawn(name, tuple(tensor.shape)))
    model.load_state_dict(state)
    return model.double()


def gradients(model, scalar) -> dict:
    scalar.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"gradient/{name}": summary(value.numpy()) for name, value in found.items()}


def resnet(name):
    size, count, wants_gradient = RESNETS[name]
    model = fill(getattr(torchvision.models, name.split("-")[0])(weights=None))
    model.train(name.endswith("train"))
    x = torch.tensor(image(size, count).transpose(0, 3, 1, 2)).double()
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    stored, scalar = {}, 0.0
    for stage in range(1, 5):
        x = getattr(model, f"layer{stage}")(x)
        maps = x.permute(0, 2, 3, 1)
        stored[f"stage{stage}"] = summary(maps.detach().numpy())
        scalar = scalar + (maps * torch.tensor(direction(tuple(maps.shape)))).sum()
    if wants_gradient:
        stored |= gradients(model, scalar)
    if model.training:
        after = {k: v for k, v in model.state_dict().items() if "running" in k}
        stored |= {f"after/{k}": summary(v.numpy()) for k, v in after.items()}
    return stored


def bert(name):
    sizes = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "vocab_size": 28996, "max_positions": 512}
    sizes |= BERTS[name]
    config = transformers.BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate"],
        max_position_embeddings=sizes["max_positions"],
        attn_implementation="eager",
    )
    model = fill(transformers.BertModel(config, add_pooling_layer=False)).eval()
    ids, mask = reports(sizes["vocab_size"])
    found = model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long(), output_hidden_states=True)
    states = found.hidden_states
    stored = {f"state{i}": summary(s.detach().numpy()[mask]) for i, s in enumerate(states)}
    if name == "bert-small":
        kept = torch.tensor(mask)[..., None]
        scalar = (states[-1] * kept * torch.tensor(direction(tuple(states[-1].shape)))).sum()
        stored |= gradients(model, scalar)
    return stored


def vit(name):
    side, sizes = VITS[name]
    if sizes:
        model = timm.models.VisionTransformer(
            img_size=sizes["grid"] * sizes["patch"],
            patch_size=sizes["patch"],
            embed_dim=sizes["hidden"],
            depth=sizes["layers"],
            num_heads=sizes["heads"],
            mlp_ratio=sizes["intermediate"] / sizes["hidden"],
            dynamic_img_size=True,
        )
    else:
        model = timm.create_model("vit_base_patch16_224", pretrained=False, dynamic_img_size=True)
    model = fill(model).eval()
    x = torch.tensor(image(side, 1).transpose(0, 3, 1, 2)).double()
    found = model.forward_intermediates(x, norm=True, output_fmt="NLC", intermediates_only=True)
    stored = {f"block{i}": summary(s.detach().numpy()) for i, s in enumerate(found, start=1)}
    if sizes:
        stored |= gradients(model, (found[-1] * torch.tensor(direction(tuple(found[-1].shape)))).sum())
    return stored


def main():
    check, worst = "--check" in sys.argv, 0.0
    for names, make in ((RESNETS, resnet), (BERTS, bert), (VITS, vit)):
        for name in names:
            stored = make(name)
            if check:
                known = load(name)
                assert known.keys() == stored.keys(), name
                worst = max([worst, *(float(np.max(np.abs(known[k] - stored[k]))) for k in known)])
            else:
                np.savez_compressed(FOLDER / f"{name}.npz", **stored)
    if check:
        pass


if __name__ == "__main__":
    main()
