"""A vision transformer in the place of the paper's ResNet: ViT-B/16 and BERT-base, films of 224 px, three rounds."""

from plan_jax.config import default_config


def get_config():
    """ViT-B/16 (14 x 14 patches of 16 px after the last block) and BERT-base as BioClinicalBERT, in bfloat16.

    [paper] BioClinicalBERT, a joint space, refinement over iterations. [ours] the ViT and which block is local, all
    sizes, K = 3, the temperatures, the optimizer, the batch: the defaults of `plan_jax/config.py`, which say where each
    comes from; here stands only what differs. Every patch of a ViT sees the whole image, unlike those of
    `configs/phantom.py`; what that does to the maps has not been measured, nothing has been trained with this one.
    Both encoders start from published weights, as in `configs/plan_r50.py`.
    """
    config = default_config()
    config.data.batch_size = 1024  # global, over all chips: `python -m plan_jax compile` says what fits
    config.image_encoder.kind = "vit"  # hidden, layers, heads, intermediate and grid are ViT-B's by default
    config.image_encoder.patch = 16
    config.image_encoder.weights = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"  # of ImageNet-21k and -1k
    config.image_encoder.channels = 3  # as these have
    config.text_encoder.weights = "emilyalsentzer/Bio_ClinicalBERT"
    config.image_encoder.local_stage = 12  # the last block
    # Computed again in the backward pass, for memory.
    config.image_encoder.remat = "block"
    config.text_encoder.remat = "block"
    config.image_encoder.dtype = "bfloat16"
    config.text_encoder.dtype = "bfloat16"
    config.optim.warmup_steps = 500
    return config
