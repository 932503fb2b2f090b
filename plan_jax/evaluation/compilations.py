"""How many programs XLA compiles: an evaluation compiles a handful, however many images and phrases it scores."""

import contextlib
from collections.abc import Iterator

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


class Count:
    """A number that grows."""

    value = 0


@contextlib.contextmanager
def counted_compilations() -> Iterator[Count]:
    """Counts the programs compiled within the block; what this process compiled before is not compiled again."""
    count = Count()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        count.value += event == EVENT

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
