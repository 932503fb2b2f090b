"""A run's checkpoints on disk (orbax v1): written in the background while training, the newest whole one read back.

A checkpoint is a folder named by the number of finished steps. Its parts are named by who saves it; those of a run are
`variables` (parameters and batch statistics, all that inference needs), `optimizer`, and `data` (the position in the
data, and the workers and processes that read it). A save that a kill or a full disk cut off leaves a temporary folder
that is never read.

Orbax (0.12.8) notices on reading that a file it needs is missing, cut short or zeroed. It does not notice flipped bits
in the arrays: their chunks are packed without a checksum. So each checkpoint has a digest of all its files, written
once it is complete and checked before it is read. A kill in between leaves a checkpoint without one; of that, orbax's
word is taken, and the run that continues from it writes the digest. A damaged checkpoint N is renamed to N.damaged once
an older one is used in its place: readers pass it by, training reaches step N again, and only a person deletes it.

All processes of a run call the same methods in the same order, and see the same folder; process 0 alone renames and
writes digests.
"""

from plan_jax.checkpoint.read import best_step, chosen_step, latest_step, load_variables, saved_steps
from plan_jax.checkpoint.save import CheckpointNotSaved, Checkpoints

__all__ = [
    "CheckpointNotSaved",
    "Checkpoints",
    "best_step",
    "chosen_step",
    "latest_step",
    "load_variables",
    "saved_steps",
]
