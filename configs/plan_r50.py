"""The paper's encoders: ResNet-50 and BERT-base, films of 224 px, three rounds."""

from plan_jax.config import default_config


def get_config():
    """ResNet-50 (stage 3 local: 14 x 14 patches of 16 px) and BERT-base as BioClinicalBERT, in bfloat16.

    [paper] a ResNet and BioClinicalBERT, a joint space, refinement over iterations. [ours] which ResNet and stage, all
    sizes, K = 3, the temperatures, the optimizer, the batch: the defaults of `plan_jax/config.py`, which say where each
    comes from; here stands only what differs. Both encoders start from published weights, fetched from the Hugging Face
    Hub once; without a network set the two fields to folders that hold them. Reports are cut by BioClinicalBERT's own
    vocabulary, lower-cased.
    """
    config = default_config()
    config.image_encoder.weights = "timm/resnet50.tv_in1k"  # torchvision's, of ImageNet
    config.image_encoder.channels = 3  # as these have
    config.text_encoder.weights = "emilyalsentzer/Bio_ClinicalBERT"
    config.data.batch_size = 1024  # global, over all chips: `python -m plan_jax compile` says what fits
    # Computed again in the backward pass, for memory: without it 128 pairs do not fit on a v5e chip.
    config.image_encoder.remat = "block"
    config.text_encoder.remat = "block"
    config.image_encoder.dtype = "bfloat16"
    config.text_encoder.dtype = "bfloat16"
    config.optim.warmup_steps = 500
    return config
