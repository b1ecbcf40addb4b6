"""The page's server, asked over 127.0.0.1: who is answered, and what."""

import http.client
import importlib.util
import json
import socket
import threading
from contextlib import contextmanager

import pytest

from dtrain.errors import InputError
from dtrain.monitor import page_server
from dtrain.monitor.page_server import PageServer, plotly_script

TOKEN = "t" * 24


class OneRun:
    """A run whose log has grown to ``end`` bytes."""

    def __init__(self):
        self.end = 10
        self.asked = []

    def changed(self):
        return self.end

    def view(self):
        return {"position": self.end, "loss": float("nan")}

    def news(self, position):
        self.asked.append(position)
        return None if position > self.end else {"position": self.end}

    def look(self, number):
        raise InputError(f"there is no look {number}")


class Runs:
    def __init__(self):
        self.one = OneRun()

    def runs(self):
        return [{"id": "job/one"}]

    def find(self, name):
        return self.one if name == "job/one" else None


@contextmanager
def serving():
    with PageServer(Runs(), socket.create_server(("127.0.0.1", 0)), TOKEN) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.stop()


@pytest.fixture
def server():
    with serving() as made:
        yield made


def ask(server, path, token=TOKEN, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    mark = "&" if "?" in path else "?"
    connection.request("GET", f"{path}{mark}token={token}" if token is not None else path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


@pytest.mark.parametrize("path", ["/", "/runs", "/run?run=job/one", "/stream?run=job/one", "/page.js", "/plotly.js"])
@pytest.mark.parametrize("token", [None, "", "wrong", "t" * 23, "ü"])
def test_nothing_is_told_without_the_token(server, path, token):
    status, _, body = ask(server, path, token if token != "ü" else "%C3%BC")
    assert status == 401
    assert "token" in body
    assert "job/one" not in body


@pytest.mark.parametrize(
    ("headers", "word"),
    [({"Host": "evil.example:80"}, "host"), ({"Host": "127.0.0.1.evil.example:80"}, "host"), ({"Host": ""}, "host")],
)
def test_another_host_name_is_refused(server, headers, word):
    status, _, body = ask(server, "/runs", **headers)
    assert (status, word in body) == (403, True)


def test_a_page_of_another_origin_is_refused(server):
    assert ask(server, "/runs", Origin="http://evil.example")[0] == 403


def test_the_page_brings_its_token_and_allows_its_own_scripts_alone(server):
    status, headers, body = ask(server, "/")
    assert status == 200
    assert "{token}" not in body
    assert body.count(f"?token={TOKEN}") == 6
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert (policy["script-src"], policy["connect-src"], policy["default-src"]) == ("'self'", "'self'", "'none'")
    assert headers["Referrer-Policy"] == "no-referrer"


def test_files_of_the_page_are_served_and_no_others(server):
    assert ask(server, "/page.js")[1]["Content-Type"].startswith("text/javascript")
    assert ask(server, "/plotly.js")[2].count("plotly") > 10
    for path in ("/../table.py", "/..%2ftable.py", "/page/", "//etc/passwd", "/other.js"):
        assert ask(server, path)[0] == 404


def test_runs_are_told_as_json_without_nan(server):
    assert json.loads(ask(server, "/runs")[2]) == [{"id": "job/one"}]
    assert json.loads(ask(server, "/run?run=job/one")[2]) == {"position": 10, "loss": "NaN"}
    for path in ("/run?run=job/two", "/run", "/stream?run=job/one&run=job/two", "/look?run=job/one&number=7"):
        assert ask(server, path)[0] == 404


def events(text):
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])


def test_a_stream_goes_on_where_the_client_was_and_says_when_it_ends():
    told = []
    with serving() as server:
        thread = threading.Thread(
            target=lambda: told.append(ask(server, "/stream?run=job/one&after=3", **{"Last-Event-ID": "7"})[2])
        )
        thread.start()
        while not server.runs.one.asked:
            thread.join(0.01)
        server.runs.one.end = 12
        server.stop()
        thread.join(20)
        assert server.runs.one.asked == [7, 10]
    assert [(kind, place) for kind, place, _ in events(told[0])] == [("news", "10"), ("news", "12"), ("end", "12")]


def test_a_client_of_another_log_is_told_to_begin_again(server):
    (told,) = events(ask(server, "/stream?run=job/one&after=99")[2])
    assert told == ("again", "99", {"run": "job/one"})


def test_clients_that_hang_are_bounded_and_keep_no_other_out(server, monkeypatch):
    hanging = [socket.create_connection(server.server_address) for _ in range(20)]
    assert ask(server, "/runs")[0] == 200
    for client in hanging:
        client.close()


def test_streams_are_bounded(server):
    while server.streams.acquire(blocking=False):
        pass
    assert ask(server, "/stream?run=job/one")[0] == 503
    server.streams.release(page_server._MOST_CLIENTS // 2)


def test_a_missing_plotly_is_told_in_one_line(monkeypatch):
    assert plotly_script().is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plotly.*pip install 'dtrain\[ui\]'") as raised:
        plotly_script()
    assert raised.value.exit_code == 2
