"""What a process that works for another must do at its start."""

import multiprocessing
import os
import signal
import threading


def follow_main_process() -> None:
    """In a worker: leaves Ctrl-C, which reaches it too, to the main process, and ends when that is killed."""
    main = multiprocessing.parent_process()
    if main is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        main.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
