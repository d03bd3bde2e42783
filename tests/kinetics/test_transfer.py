"""Servers that send without end, too slowly, too much, or redirect elsewhere are refused."""

import contextlib
import email.utils
import http.server
import logging
import threading
import time

import pytest

from actionzoo.kinetics import transfer
from actionzoo.kinetics.transfer import Failed, Gone, Patience, Web


@contextlib.contextmanager
def server(answer):
    """Answers every GET and HEAD by `answer(handler)`; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):
                answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()


def head(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


@pytest.fixture
def web():
    made = []

    def make(url, **patience) -> Web:
        made.append(Web(url, Patience(**({"retries": 0, "backoff_seconds": 0.01} | patience), stop=threading.Event())))
        return made[-1]

    yield make
    for each in made:
        each.close()


def endless(handler):
    head(handler)
    while handler.command == "GET":
        handler.wfile.write(bytes(2**16))


def fetch(web, tmp_path, name="part_0.tar"):
    return web.fetch(name, tmp_path / "partial", lambda num_bytes: None)


def test_a_body_without_size_and_end_is_refused_and_nothing_of_it_stays(web, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_FILE_BYTES", 2**20)
    with server(endless) as url, pytest.raises(Gone, match="does not end: 1 MiB came; refused"):
        fetch(web(url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_body_without_size_leaves_room_on_the_disk(web, tmp_path, monkeypatch):
    free = transfer.shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(transfer, "RESERVE_BYTES", free - 2**20)
    with server(endless) as url, pytest.raises(Gone, match="does not end"):
        fetch(web(url), tmp_path)


def test_a_list_without_end_is_refused(web, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_TEXT_BYTES", 2**20)
    with server(endless) as url, pytest.raises(Failed, match="larger than 1 MiB"):
        web(url).read("list.txt")


def drip(handler):
    head(handler, Content_Length="1000000", ETag='"a"')
    while handler.command == "GET":
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.01)


def test_a_trickle_is_no_progress(web, tmp_path):
    slow = {"retries": 1, "min_bytes_per_second": 10_000, "rate_seconds": 0.2}
    with server(drip) as url, pytest.raises(Failed, match="bytes came in"):
        fetch(web(url, **slow), tmp_path)
    with server(drip) as url, pytest.raises(Failed, match="bytes came in"):
        web(url, **slow).read("list.txt")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_when_to_come_back(web, caplog, form):
    def busy(handler):
        after = "7" if form == "seconds" else email.utils.formatdate(time.time() + 8, usegmt=True)
        head(handler, 503, Retry_After=after)

    asked = web("http://127.0.0.1:9", retries=1)
    asked.patience.stop.wait = lambda seconds: None
    with server(busy) as url, caplog.at_level(logging.WARNING), pytest.raises(Failed, match="503"):
        asked.root = url
        asked.read("list.txt")
    assert any(f"in {seconds} s" in caplog.text for seconds in (6, 7, 8))


@pytest.mark.parametrize("text", ["", "soon", "-5", "9" * 5000, "Mon, 99 Foo 2026", "1e9"])
def test_an_odd_time_to_come_back_is_none(text):
    assert transfer._retry_after_seconds(text) == 0


def test_no_server_makes_us_wait_for_ever():
    patience = Patience(1, 0.01, threading.Event())
    pauses = []
    patience.stop.wait = pauses.append

    def fail():
        raise Failed("503", retry_after_seconds=10**9)

    with pytest.raises(Failed):
        patience.attempt(fail)
    assert pauses == [transfer.MAX_PAUSE_SECONDS]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://["])
def test_a_redirect_out_of_the_web_is_refused(web, tmp_path, target):
    with server(lambda handler: head(handler, 302, Location=target)) as url, pytest.raises((Failed, Gone)):
        fetch(web(url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_redirects_have_an_end(web, tmp_path):
    with server(lambda handler: head(handler, 302, Location="/again")) as url, pytest.raises(Failed, match="redirect"):
        fetch(web(url), tmp_path)


def test_a_redirect_from_https_to_http_is_refused():
    secure = transfer.httpx.Response(302, request=transfer.httpx.Request("GET", "https://a.example/x"))
    plain = transfer.httpx.Response(200, request=transfer.httpx.Request("GET", "http://a.example/x?key=1"))
    plain.history = [secure]
    with pytest.raises(Gone, match=r"from https to http://a\.example/x\?\*\*\*; refused"):
        transfer._check_redirects(plain)


@pytest.mark.parametrize("size", ["many", "-1", "9" * 5000, "1e3"])
def test_a_size_that_is_no_number_ends_in_a_sentence(web, tmp_path, size):
    with server(lambda handler: head(handler, Content_Length=size)) as url, pytest.raises((Failed, Gone)):
        fetch(web(url), tmp_path)
        raise Failed("taken as unknown")
