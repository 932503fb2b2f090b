"""The word of Google Cloud that this machine is about to go: a TPU that is preempted, or stopped for maintenance."""

import http.client
import os
import sys
import threading
import urllib.request
from collections.abc import Callable

from tqdm import tqdm

HOST = "metadata.google.internal"
HEADER = {"Metadata-Flavor": "Google"}  # asked for by the server, and in its answers
# What the server tells of an instance -> the value upon which to stop, and the words for it. A TPU is never migrated.
# https://cloud.google.com/compute/docs/instances/create-use-spot (detect preemption) and
# https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
NOTICES = {
    "preempted": ("TRUE", "the notice of a preemption"),
    "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", "the notice of a maintenance"),
}
TRIES = 6  # questions without an answer, the waits between them doubling, until a machine counts as not Google's
PAUSE = 0.5  # seconds between a question and the next, also where answers come at once
LONGEST = 60.0  # seconds between two questions to a server that has answered before: it is away during a maintenance


class PreemptionNotice:
    """Threads that ask the metadata server for changes while the context lasts, and stop the run upon a notice.

    A question is answered at once where the value has changed, else after `patience`, and so a thread ends at most a
    few seconds after the context. Where no server answers they give up, and say so once.

    Args:
        stop: takes why the run is to stop; called from a thread, once for each value that says so.
        enabled: whether to ask at all, as on a TPU.
        host: the server, by default that of GCE_METADATA_HOST, which Google's own libraries read, or else HOST.
        patience: whole seconds that a question may take.
        first_wait: seconds after the first question without an answer.
    """

    def __init__(
        self,
        stop: Callable[[str], None],
        *,
        enabled: bool,
        host: str | None = None,
        patience: int = 5,
        first_wait: float = 1.0,
    ):
        self._stop, self._patience, self._first_wait = stop, patience, first_wait
        self._host = host or os.environ.get("GCE_METADATA_HOST") or HOST
        self._ended, self._silent = threading.Event(), threading.Lock()
        names = NOTICES if enabled else ()
        self._threads = [threading.Thread(target=self._watch, args=(each,), name=each, daemon=True) for each in names]

    def __enter__(self) -> "PreemptionNotice":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self, name: str) -> None:
        value, why = NOTICES[name]
        etag, failures, answered = "0", 0, False  # of no value: the first answer comes at once
        while not self._ended.is_set():
            try:
                found, etag = self._ask(name, etag)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failures += 1
                if failures >= TRIES and not answered:
                    self._give_up(error)
                    return
                self._ended.wait(min(self._first_wait * 2 ** min(failures - 1, 10), LONGEST))
                continue
            failures, answered = 0, True
            if found == value:
                self._stop(why)
                return
            self._ended.wait(PAUSE)

    def _ask(self, name: str, etag: str) -> tuple[str, str]:
        """The value once it is another than that of the tag, or after `patience`, and its tag."""
        query = f"wait_for_change=true&timeout_sec={self._patience}&last_etag={etag}"
        url = f"http://{self._host}/computeMetadata/v1/instance/{name}?{query}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(urllib.request.Request(url, headers=HEADER), timeout=self._patience + 5) as answer:
            if answer.headers.get("Metadata-Flavor") != "Google" or not answer.headers.get("ETag"):
                raise ValueError("another server answers")
            return answer.read(100).decode("ascii").strip(), answer.headers["ETag"]

    def _give_up(self, error: Exception) -> None:
        if self._silent.acquire(blocking=False):  # the first thread that gives up; for good
            line = f"plan_jax: no notice of a preemption will come, SIGTERM saves all the same: {self._host}: {error}"
            tqdm.write(line, file=sys.stderr)
