"""The phantom of the demo: the real classes, small enough for two cores."""

from plan_jax.config import default_config


def get_config():
    """64 px phantoms, patches of 4 px on a 16 x 16 grid, one text layer."""
    config = default_config()
    config.data.image_size = 64
    config.data.batch_size = 32
    config.data.max_tokens = 80
    config.data.max_words = 64

    config.image_encoder.stem = "patchify"
    config.image_encoder.patch = 4
    config.image_encoder.width = 32
    config.image_encoder.stages = (2, 1)
    config.image_encoder.block = "basic"
    config.image_encoder.local_stage = 1

    config.text_encoder.hidden = 64
    config.text_encoder.layers = 1
    config.text_encoder.heads = 4
    config.text_encoder.intermediate = 128
    config.text_encoder.max_positions = 128
    config.text_encoder.dropout = 0.0

    config.alignment.dim = 64
    config.alignment.rounds = 0

    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 60
    config.train.steps = 1200
    config.train.checkpoint_every = 200
    config.evaluation.untrained = True
    return config
