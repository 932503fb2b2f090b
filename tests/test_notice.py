"""The notice of a preemption, from a metadata server of the test's own on this machine."""

import contextlib
import http.server
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable

import pytest

from plan_jax.train.guard import StopSignals
from plan_jax.train.notice import NOTICES, TRIES, PreemptionNotice

WAIT = 30  # seconds, on a busy machine
GOOD = {"Metadata-Flavor": "Google"}


class Metadata(http.server.ThreadingHTTPServer):
    """Answers as Google's: at once where the value is not that of the tag, else when it changes or time is up."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.changed, self.asked = threading.Condition(), []
        self.status, self.headers, self.waits = 200, GOOD, True

    def change(self, name: str, value: str) -> None:
        with self.changed:
            self.values[name] = value
            self.changed.notify_all()

    def questions(self, name: str) -> list[tuple[str, dict, dict]]:
        return [each for each in list(self.asked) if each[0].endswith(f"/{name}")]


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(path.query))
        server.asked.append((path.path, query, dict(self.headers)))
        name = path.path.rpartition("/")[2]
        with server.changed:
            if server.waits:
                same = lambda: server.values[name] != query["last_etag"]  # noqa: E731
                server.changed.wait_for(same, timeout=int(query["timeout_sec"]))
            value = server.values[name]
        self.send_response(server.status)
        for header, text in {**server.headers, "ETag": value, "Content-Length": str(len(value))}.items():
            self.send_header(header, text)
        self.end_headers()
        self.wfile.write(value.encode("latin-1"))

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Metadata() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def soon(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def watching() -> int:
    return sum(thread.name in NOTICES for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    soon(lambda: not watching())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("preempted", "TRUE", "the notice of a preemption"),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", "the notice of a maintenance"),
    ],
)
def test_a_change_stops_the_run_at_once_and_says_why(name, value, why, server, capsys):
    with StopSignals() as stop, PreemptionNotice(stop.request, enabled=True, host=server.host, patience=20):
        soon(lambda: all(len(server.questions(each)) == 2 for each in NOTICES))  # the second waits for a change
        assert not stop.requested
        changed = time.monotonic()
        server.change(name, value)
        soon(lambda: stop.requested)
        assert time.monotonic() - changed < 5  # not the 20 that a question may take
        for each in NOTICES:  # ends those that wait
            server.change(each, "other")
    assert capsys.readouterr().err == f"plan_jax: asked to stop by {why}\n"


def test_what_is_asked_is_what_the_server_documents(server):
    with PreemptionNotice(pytest.fail, enabled=True, host=server.host, patience=1):
        soon(lambda: len(server.questions("preempted")) >= 3)
    for path, query, headers in server.asked:
        assert path in ("/computeMetadata/v1/instance/preempted", "/computeMetadata/v1/instance/maintenance-event")
        assert headers["Metadata-Flavor"] == "Google"
        assert (query["wait_for_change"], query["timeout_sec"]) == ("true", "1")
    assert [query["last_etag"] for _, query, _ in server.questions("preempted")[:3]] == ["0", "FALSE", "FALSE"]


def test_a_machine_that_is_already_going_is_told_by_the_first_answer(server):
    server.change("preempted", "TRUE")
    told = []
    with PreemptionNotice(told.append, enabled=True, host=server.host, patience=1):
        soon(lambda: bool(told))
    assert told == ["the notice of a preemption"]


def test_a_migration_or_another_value_stops_nothing(server):
    server.change("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    server.change("preempted", "true?")
    told = []
    with PreemptionNotice(told.append, enabled=True, host=server.host, patience=1):
        soon(lambda: len(server.asked) >= 4)
    assert told == []


def nothing_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["down", "500", "another server", "no host"])
def test_where_no_such_server_answers_they_give_up_and_say_so_once(fault, server, capsys):
    server.status, server.headers = (500, GOOD) if fault == "500" else (200, {})
    host = {"down": nothing_listens(), "no host": "a b"}.get(fault, server.host)
    with PreemptionNotice(pytest.fail, enabled=True, host=host, patience=1, first_wait=0.001):
        soon(lambda: not watching())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"plan_jax: no notice of a preemption will come, SIGTERM saves all the same: {host}: ")
    assert len(server.asked) == (2 * TRIES if host == server.host else 0)


def test_a_server_that_is_away_for_a_while_is_asked_again_without_a_word(server, capsys):
    told = []
    with PreemptionNotice(told.append, enabled=True, host=server.host, patience=1, first_wait=0.0001):
        soon(lambda: len(server.asked) >= 4)  # the first ones have been answered
        server.status = 503  # as Google's during a maintenance
        soon(lambda: min(len(server.questions(name)) for name in NOTICES) >= 2 + TRIES + 1)
        server.change("preempted", "TRUE")
        server.status = 200
        soon(lambda: bool(told))
    assert capsys.readouterr().err == ""


def test_a_server_that_never_waits_is_not_flooded(server):
    server.waits = False
    with PreemptionNotice(pytest.fail, enabled=True, host=server.host):
        soon(lambda: len(server.asked) >= 2)
        time.sleep(0.7)
    assert len(server.asked) <= 2 * 3


def test_the_server_is_the_one_of_the_environment_and_no_proxy_is_asked(server, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    monkeypatch.setenv("http_proxy", f"http://{nothing_listens()}")
    told = []
    with PreemptionNotice(told.append, enabled=True, patience=1):
        soon(lambda: len(server.asked) >= 2)
    assert told == []


def test_elsewhere_than_on_a_tpu_nothing_is_asked(server):
    with PreemptionNotice(pytest.fail, enabled=False, host=server.host):
        assert not watching()
    assert server.asked == []


def test_ctrl_c_after_a_notice_asks_and_only_the_next_one_interrupts(capsys):
    with contextlib.suppress(KeyboardInterrupt), StopSignals() as stop:
        stop.request("the notice of a preemption")
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one must interrupt")
    assert capsys.readouterr().err == "plan_jax: asked to stop by the notice of a preemption\n"
