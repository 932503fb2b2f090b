"""What a class is called in a zero-shot prompt: fixed lists, so that a score never depends on a draw.

A class's score is the mean over its prompts. The phantom's prompts say the names its reports use, all of them; a class
that has no names here is asked for by its own [ours].
"""

from plan_jax.data.phantom_text import SYNONYMS


def prompts_of(name: str) -> tuple[str, ...]:
    """The prompts of a class."""
    return tuple(f"there is {synonym}" for synonym in SYNONYMS.get(name, (name.lower(),)))
