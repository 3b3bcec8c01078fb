# SPDX-License-Identifier: Apache-2.0
"""What holds a server up, and what it does while its index changes or it stops."""

import contextlib
import json
import random
import shutil
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fmfa_jax import search
from fmfa_jax.search import callers, connections
from fmfa_jax.search import server as serving
from fmfa_jax.search import service as limits
from fmfa_jax.search.callers import Password, owner
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.indexes import SMALL, flipped, made_old
from tests.fmfa_jax.search.served import (
    BYTES,
    JSON,
    WAIT,
    credentials,
    get,
    post,
    running,
    send,
    talk,
    until,
)

UPLOAD = (
    b"POST /api/example HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    b"Content-Type: application/octet-stream\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(searcher):
    with running(searcher) as server:
        yield server


def opened(stack, server, count, data=b""):
    """Open connections, and send the same on each."""
    made = []
    for _ in range(count):
        made.append(stack.enter_context(socket.create_connection(server.address)))
        made[-1].sendall(data)
    return made


def open_now(server):
    return len(server._server.server_state.connections)


@pytest.mark.parametrize("slow", [b"GET / HTTP/1.1\r\nX-a: ", UPLOAD + b"b"])
def test_slow_and_idle_clients_hold_up_nobody(server, slow):
    """All of them from the address that searches, 64 slow and 200 idle ones."""
    with contextlib.ExitStack() as stack:
        opened(stack, server, 64, slow)
        opened(stack, server, 200)
        for _ in range(3):
            assert post(server, "/api/search", sentence="a")[0] == 200
        assert open_now(server) <= connections.CONNECTIONS_EACH + 1
    until(lambda: open_now(server) == 0)


def test_the_longest_idle_connection_makes_room(server, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS_EACH", 2)
    with contextlib.ExitStack() as stack:
        first, second = opened(stack, server, 2)
        until(lambda: open_now(server) == 2)
        assert get(server, "/health")[0] == 200
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert second.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("limit", ["CONNECTIONS", "CONNECTIONS_EACH"])
def test_connections_beyond_the_limit_are_answered(server, monkeypatch, limit):
    monkeypatch.setattr(connections, limit, 2)
    with contextlib.ExitStack() as stack:
        opened(stack, server, 2, UPLOAD)
        until(lambda: server._uploads._taken.total() == 2)
        status, headers, body = send(server, "GET", "/")
        assert status == 503 and headers["Retry-After"] == "1"
        assert "too many connections" in json.loads(body)["error"]
    until(lambda: open_now(server) == 0)
    assert send(server, "GET", "/")[0] == 200


def test_whoever_does_not_take_an_answer_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.5)
    asked = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(server.address) as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(5)
        with contextlib.suppress(OSError):
            greedy.sendall(2000 * asked)
        until(lambda: open_now(server) == 0)
        assert open_now(server) == 0
    assert get(server, "/health")[0] == 200


def test_example_pictures_have_places_for_each_address(server, searcher):
    with contextlib.ExitStack() as stack:
        opened(stack, server, serving.UPLOADS_EACH, UPLOAD)
        until(lambda: server._uploads._taken.total() == serving.UPLOADS_EACH)
        status, headers, _ = send(server, "POST", "/api/example", b"x", BYTES)
        assert status == 503 and headers["Retry-After"] == "1"
        assert post(server, "/api/search", sentence="a")[0] == 200
    until(lambda: not server._uploads._taken)
    picture = searcher.gallery.read(0)
    assert send(server, "POST", "/api/example", picture, BYTES)[0] == 200


def test_a_search_does_not_wait_for_ever(server, monkeypatch):
    monkeypatch.setattr(limits, "WAIT_SECONDS", 0.1)
    with server.service._turn:
        status, answer = post(server, "/api/search", sentence="a")
        assert status == 503 and "try again" in answer["error"]
        assert get(server, "/health")[0] == 200
        assert send(server, "GET", "/page.js")[0] == 200
    assert post(server, "/api/search", sentence="a")[0] == 200


def test_owners_of_addresses():
    assert owner("10.1.2.3") == owner("::ffff:10.1.2.3") == "10.1.2.3"
    assert owner("2001:db8:1:2::3") == owner("2001:db8:1:2:ffff::") != owner("::1")
    assert owner("") == ""


def ask(password, given, address):
    """Return the status of a request with a password."""
    headers = [(b"authorization", credentials(given)["Authorization"].encode())]
    scope = {"type": "http", "headers": headers, "client": (address, 0)}
    try:
        password.check(Request(scope))
    except HTTPException as error:
        return error.status_code
    return 200


def test_wrong_passwords_are_counted():
    now = 0.0
    password = Password("right", clock=lambda: now)
    assert ask(password, "right", "known") == 200
    for _ in range(callers.GUESSES_EACH):
        assert ask(password, "wrong", "guesser") == 401
    assert ask(password, "right", "guesser") == 429, "an answer would be a guess"
    assert ask(password, "right", "other") == 200
    for number in range(callers.GUESSES - callers.GUESSES_EACH):
        assert ask(password, "wrong", f"one of many {number}") == 401
    assert ask(password, "right", "new") == ask(password, "wrong", "new") == 429
    assert ask(password, "right", "known") == ask(password, "right", "other") == 200
    now += callers.GUESS_SECONDS
    assert ask(password, "right", "guesser") == ask(password, "right", "new") == 200
    assert not password._wrong


def test_guesses_are_limited_whatever_the_connection(searcher):
    with running(searcher, password="right", names=["people.example"]) as server:
        proxy = {"Host": "people.example", **credentials("right")}

        def guess(number, given="wrong"):
            address = {"X-Forwarded-For": f"10.0.0.{number}"}
            return get(server, "/api/gallery", **proxy | credentials(given) | address)

        assert guess(250, "right")[0] == 200
        with ThreadPoolExecutor(8) as pool:
            statuses = [status for status, _ in pool.map(guess, range(100))]
        assert statuses.count(401) == callers.GUESSES
        assert statuses.count(429) == 100 - callers.GUESSES
        status, answer = guess(251, "right")
        assert status == 429 and "try again in " in answer["error"]
        assert guess(250, "right")[0] == 200
        # Probes have no password, and learn nothing.
        for path in ("/health", "/ready"):
            assert get(server, path, Host="people.example")[0] == 200
            assert get(server, path, Host="evil.example")[0] == 403


def test_the_access_log_has_no_queries_unless_asked(searcher, tmp_path):
    for queries in (False, True):
        path = tmp_path / f"access {queries}.log"
        options = {"access_log": str(path), "log_queries": queries}
        with running(searcher, **options) as server:
            assert post(server, "/api/search", sentence="a secret\n")[0] == 200
            assert get(server, "/api/no\x1b".replace("\x1b", "%1b"))[0] == 404
            path.rename(tmp_path / "rotated.log")
            assert get(server, "/health")[0] == 200
        lines = (tmp_path / "rotated.log").read_text().splitlines()
        lines += path.read_text().splitlines()
        asked = [json.loads(line) for line in lines]
        assert [(each["method"], each["path"], each["status"]) for each in asked] == [
            ("POST", "/api/search", 200),
            ("GET", "/api/no\x1b", 404),
            ("GET", "/health", 200),
        ]
        assert all(each["address"] == "127.0.0.1" for each in asked)
        assert asked[0]["bytes"] > 100 and asked[0]["ms"] > 0
        assert ("secret" in lines[0]) == queries == ("query" in asked[0])
    with pytest.raises(SearchError, match="--access-log"):
        with running(searcher, access_log=str(tmp_path)):
            pass


def test_a_changed_index_is_served_without_a_restart(gallery, encoder, tmp_path):
    out = tmp_path / "people.index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    with running(search.open_searcher(out)) as server:

        def found():
            status, answer = post(server, "/api/search", sentence="a", limit=100)
            assert status == 200
            return {hit["file"]: hit["picture"] for hit in answer["results"]}

        before = found()
        removed, picture = next(iter(before.items()))
        assert send(server, "GET", f"{picture}/small")[0] == 200
        search.remove(out, [removed])
        assert send(server, "GET", f"{picture}/small")[0] == 400
        assert found().keys() == before.keys() - {removed}
        Image.new("RGB", (30, 60), "red").save(gallery / "new.jpg")
        search.add(out, encoder, **SMALL)
        assert found().keys() == (before.keys() - {removed}) | {"new.jpg"}
        assert get(server, "/api/gallery")[1]["pictures"] == 24

        out.rename(tmp_path / "away")
        assert get(server, "/ready")[0] == 503 and len(found()) == 24
        (tmp_path / "away").rename(out)
        assert get(server, "/ready")[0] == 200 and len(found()) == 24

        search.remove(out, ["new.jpg"])
        flipped(next((out / "shards").iterdir()), random.Random(0))
        assert get(server, "/ready")[0] == 503
        assert len(found()) == 24, "a damaged index does not replace a sound one"


def test_the_model_stays_where_it_was_said_to_be(
    gallery, model_file, population, tmp_path
):
    """Also as an index of version 2 gets the fingerprint that it lacked."""
    out, place = tmp_path / "people.index", tmp_path / "model.safetensors"
    shutil.copy(model_file, place)
    model = search.open_model(place, tokenizer=str(population / "tokenizer"))
    search.index_gallery(gallery, out, model, **SMALL)
    made_old(out)
    moved = place.rename(tmp_path / "moved.safetensors")
    with running(search.open_searcher(out, model=str(moved))) as server:
        Image.new("RGB", (30, 60), "blue").save(gallery / "blue.jpg")
        search.add(out, model, **SMALL)
        assert get(server, "/ready")[0] == 200
        assert get(server, "/api/gallery")[1]["pictures"] == 25


def test_health_does_not_wait_for_an_index(server):
    with ThreadPoolExecutor(50) as pool:
        with server.service._opening:
            waiting = [pool.submit(get, server, "/ready") for _ in range(50)]
            until(lambda: open_now(server) >= 50)
            assert get(server, "/health")[0] == 200
            assert send(server, "GET", "/page.js")[0] == 200
            assert not any(each.done() for each in waiting)
        assert {each.result()[0] for each in waiting} == {200}


def test_an_index_that_cannot_be_opened_is_not_tried_at_every_request(
    gallery, encoder, tmp_path, monkeypatch
):
    out = tmp_path / "people.index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    searcher = search.open_searcher(out)
    service, tries = limits.Service(searcher), []
    refreshed = search.Searcher.refreshed

    def counted(self):
        tries.append(self)
        return refreshed(self)

    monkeypatch.setattr(search.Searcher, "refreshed", counted)
    away = out.rename(tmp_path / "away")
    assert [service.ready() for _ in range(5)] == [False] * 5
    assert len(tries) == 1
    away.rename(out)
    assert service.ready() and len(tries) == 2


def test_an_index_that_is_emptied_while_it_is_served(gallery, encoder, tmp_path):
    out = tmp_path / "people.index"
    search.index_gallery(gallery, out, encoder, **SMALL)
    with running(search.open_searcher(out)) as server:
        search.remove(out, ["."])
        status, answer = post(server, "/api/search", sentence="a")
        assert status == 400 and "holds no pictures" in answer["error"]
        assert get(server, "/ready")[0] == 200


def test_running_requests_are_answered_before_a_stop(searcher):
    with running(searcher) as server, ThreadPoolExecutor(8) as pool:
        places = server.service._places
        with server.service._turn:
            asked = [
                pool.submit(post, server, "/api/search", sentence=f"a man {i}")
                for i in range(8)
            ]
            until(lambda: places._value == limits.WAITING + 1 - 8)
            with socket.create_connection(server.address):
                server.stop()
                until(lambda: not server._server.servers[0].is_serving())
        assert [each.result()[0] for each in asked] == 8 * [200]


def test_a_request_on_its_way_is_answered_before_a_stop(searcher, monkeypatch):
    monkeypatch.setattr(connections, "LAST_SECONDS", 10)
    with running(searcher) as server:
        with socket.create_connection(server.address) as late:
            until(lambda: open_now(server) == 1)
            server.stop()
            until(lambda: not server._server.servers[0].is_serving())
            late.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: late.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere some are reset")
def test_who_comes_during_a_stop_is_refused_and_not_reset(searcher, monkeypatch):
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 2)
    with running(searcher) as server:
        server.stop()
        with pytest.raises(TimeoutError):
            while True:
                socket.create_connection(server.address, timeout=0.2).close()
        assert server._server.servers[0].is_serving()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address, timeout=WAIT)


def test_many_searches_at_once_are_all_answered(server):
    """As the load test in full: `python -m benchmarks.serve`."""
    failed = []

    def search_on(number):
        for i in range(10):
            status, answer = post(server, "/api/search", sentence=f"a {number} {i}")
            if status != 200:
                failed.append(answer)

    threads = [threading.Thread(target=search_on, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server):
    head = b"POST /api/example HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    head += b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
    answer = talk(server, head % (limits.MAX_UPLOAD + 1))
    assert answer.startswith(b"HTTP/1.1 413") and b"100 Continue" not in answer


def test_a_sentence_that_is_cut_is_told_to_the_page(server, searcher):
    long = "a person who walks along the street and looks around " * 3
    status, answer = post(server, "/api/search", sentence=long)
    assert status == 200 and answer["cut"] == searcher.cut(long) > 10
    assert post(server, "/api/search", sentence="a man")[1]["cut"] is None
    assert send(server, "POST", "/api/search", b"{}", JSON)[0] == 400
