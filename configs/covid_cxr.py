"""Real films with notes: the COVID-19 Image Data Collection. About a hundred films prove the path, not accuracy."""

from plan_jax.config import default_config


def get_config():
    """128 px films, patches of 8 px on a 16 x 16 grid, two text layers."""
    config = default_config()
    config.data.image_size = 128
    config.data.batch_size = 16
    config.data.max_tokens = 128  # the notes are long; what does not fit is cut at a word
    config.data.max_words = 64

    config.image_encoder.stem = "patchify"
    config.image_encoder.patch = 8
    config.image_encoder.width = 32
    config.image_encoder.stages = (1, 1)
    config.image_encoder.block = "bottleneck"
    config.image_encoder.local_stage = 1

    config.text_encoder.hidden = 64
    config.text_encoder.layers = 2
    config.text_encoder.heads = 4
    config.text_encoder.intermediate = 128
    config.text_encoder.max_positions = 128

    config.alignment.dim = 64
    config.alignment.rounds = 0
    config.alignment.region_temperature = 0.125
    config.loss.local_temperature = 0.07

    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 20
    config.train.steps = 200
    config.train.checkpoint_every = 100
    config.evaluation.pool = 0  # twelve test films: the full pool only
    return config
