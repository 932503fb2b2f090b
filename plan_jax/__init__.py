"""PLAN in JAX and Flax: learns from chest radiographs and their reports where in the image a phrase points to.

Nobody draws a box: words and image patches are aligned by a contrastive loss over whole reports, and a phrase's
similarity to every patch, brought back to the image's pixels, is its grounding map.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`plan_jax.Plan`, imported when it is first asked for, so that `import plan_jax` stays light."""
    if name == "Plan":
        from plan_jax.inference import Plan

        return Plan
    raise AttributeError(f"module 'plan_jax' has no attribute {name!r}")
