# SPDX-License-Identifier: Apache-2.0
"""The server over real connections: what it gives, and what it refuses."""

import base64
import contextlib
import http.client
import io
import json
import shutil
import ssl
import subprocess

import pytest
from PIL import Image

from fmfa_jax.search import callers, connections
from fmfa_jax.search import server as serving
from fmfa_jax.search import service as limits
from fmfa_jax.search.server import SearchServer
from fmfa_jax.search.service import Service
from fmfa_jax.search.store import SearchError
from tests.fmfa_jax.search.served import BYTES, JSON, post, running, send, talk


@pytest.fixture(scope="module")
def server(searcher):
    with running(searcher) as server:
        yield server


def test_the_page_and_nothing_from_elsewhere(server):
    for path in ("/", "/page.css", "/page.js", "/detail.js", "/icon.svg"):
        status, headers, body = send(server, "GET", path)
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and 'src="//' not in text
    assert send(server, "GET", "/api/gallery")[0] == 200
    about = json.loads(send(server, "GET", "/api/gallery")[2])
    assert about["pictures"] == 24 and about["name"] == "gallery"


def test_pages_of_a_search_join_into_its_ranking(server, searcher):
    found = searcher.search(searcher.vector("a man in red"), 24)
    rows = []
    for offset in (0, 10, 20):
        values = {"sentence": "a man in red", "offset": offset, "limit": 10}
        status, answer = post(server, "/api/search", **values)
        assert status == 200 and answer["matches"] == 24
        rows += answer["results"]
    assert [hit["row"] for hit in rows] == found.rows.tolist()
    assert [hit["rank"] for hit in rows] == list(range(1, 25))
    assert rows[3]["file"] == searcher.gallery.file(rows[3]["row"])
    least = rows[5]["similarity"] - 1e-4
    _, cut = post(server, "/api/search", sentence="a man in red", minimum=least)
    assert 6 <= cut["matches"] == len(cut["results"]) < 24


def test_pictures_come_by_number_and_as_jpeg(server):
    for size, height in (("small", 96), ("large", 96)):
        path = f"/picture/{server.service.version}/0/{size}"
        status, headers, body = send(server, "GET", path)
        assert status == 200 and headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(body)).size == (48, height)


@pytest.mark.parametrize(
    "path",
    [
        "/picture/V/24/small",
        "/picture/V/-1/small",
        "/picture/V/0/huge",
        "/picture/V/99999999999999999999/small",
        "/picture/V/../../secret.jpg/small",
        "/picture/V/%2e%2e%2fsecret.jpg/small",
        "/picture/V/0/small/../../../secret.jpg",
        "/../secret.jpg",
        "/page/index.html",
        "/server.py",
        "//etc/passwd",
        "/picture/V/%C2%B2/small",
        "/picture/0000000000000000/0/small",
    ],
)
def test_nothing_else_is_given_away(server, path):
    path = path.replace("V", server.service.version)
    status, headers, body = send(server, "GET", path)
    assert status in (400, 404)
    assert "error" in json.loads(body) and b"not yours" not in body
    assert "Content-Security-Policy" in headers


def test_an_example_picture_searches_and_is_forgotten(server, searcher, monkeypatch):
    monkeypatch.setattr(limits, "EXAMPLES", 2)
    keys = []
    for row in (4, 5, 6):
        status, _, body = send(
            server, "POST", "/api/example", searcher.gallery.read(row), BYTES
        )
        assert status == 200
        keys.append(json.loads(body)["example"])
    for row, key in ((5, keys[1]), (6, keys[2])):
        _, answer = post(server, "/api/search", example=key, limit=1)
        assert answer["results"][0]["row"] == row
    status, answer = post(server, "/api/search", example=keys[0])
    assert status == 400 and "forgotten" in answer["error"]
    both = post(server, "/api/search", example=keys[1], sentence="a hat", limit=1)
    assert both[1]["highest"] < 1


def test_words_and_regions_of_a_picture(server):
    version = server.service.version
    asked = {"sentence": "red, hat", "row": 2}
    status, answer = post(server, "/api/explain", **asked, version=version)
    assert status == 200 and answer["covered"] == [1, 1]
    assert [word["word"] for word in answer["words"]] == ["red", ",", "hat"]
    assert [word["shown"] for word in answer["words"]] == [True, False, True]
    cells = answer["words"][0]["cells"]
    assert (len(cells), len(cells[0])) == (4, 2)
    for wrong in ({"row": 24}, {"row": -1}, {"version": "x"}, {"sentence": " "}):
        values = {**asked, "version": version, **wrong}
        assert post(server, "/api/explain", **values)[0] == 400


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sentence": 3},
        {"sentence": "a" * 1001},
        {"sentence": "a", "offset": -1},
        {"sentence": "a", "offset": 10**6},
        {"sentence": "a", "limit": 0},
        {"sentence": "a", "limit": True},
        {"sentence": "a", "minimum": "x"},
        {"sentence": "a", "minimum": float("nan")},
        {"example": "nobody"},
    ],
)
def test_searches_that_cannot_be_used_are_told(server, values):
    status, answer = post(server, "/api/search", **values)
    assert status == 400 and len(answer["error"]) > 10


def test_uploads_are_limited_before_they_are_read(server):
    large = {**BYTES, "Content-Length": str(limits.MAX_UPLOAD + 1)}
    assert send(server, "POST", "/api/example", b"", large)[0] == 413
    large = {**JSON, "Content-Length": str(serving.MAX_JSON + 1)}
    assert send(server, "POST", "/api/search", b"", large)[0] == 413
    chunked = {**BYTES, "Transfer-Encoding": "chunked"}
    assert send(server, "POST", "/api/example", None, chunked)[0] == 411
    assert send(server, "POST", "/api/example", b"no picture", BYTES)[0] == 400
    assert send(server, "POST", "/api/example", b"x", JSON)[0] == 415
    assert send(server, "POST", "/api/search", b"{}", BYTES)[0] == 415
    for body in (b"[]", b"{", b"[" * 9000, b"\xff"):
        assert send(server, "POST", "/api/search", body, JSON)[0] == 400
    assert send(server, "POST", "/api/nothing", b"{}", JSON)[0] == 404
    assert send(server, "GET", "/api/search")[0] == 405


def test_other_sites_pages_and_names_are_refused(server):
    port = server.address[1]
    own = {"Host": f"localhost:{port}"}
    assert send(server, "GET", "/", headers=own)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        assert send(server, "GET", "/", headers={"Host": host})[0] == 403
    evil = {**JSON, "Origin": "http://evil.example"}
    assert send(server, "POST", "/api/search", b"{}", evil)[0] == 403


def test_a_password_guards_every_address(searcher):
    with running(searcher, password="grün 1") as server:
        for path in ("/", "/page.js", "/picture/V/0/small", "/api/gallery"):
            status, headers, _ = send(server, "GET", path)
            assert status == 401 and headers["WWW-Authenticate"].startswith("Basic")
        for given, wanted in (("grün 1", 200), ("grün", 401), ("", 401)):
            encoded = base64.b64encode(f"me:{given}".encode()).decode()
            credentials = {"Authorization": f"Basic {encoded}"}
            assert send(server, "GET", "/", headers=credentials)[0] == wanted
        for broken in ("Basic ***", "Basic", "Bearer bWU6Z3LDvG4gMQ=="):
            assert send(server, "GET", "/", headers={"Authorization": broken})[0] == 401


def test_too_many_searches_at_once_are_told_to_come_again(server, monkeypatch):
    service = server.service
    taken = limits.WAITING + 1
    for _ in range(taken):
        assert service._places.acquire(blocking=False)
    try:
        values = json.dumps({"sentence": "a"})
        status, headers, _ = send(server, "POST", "/api/search", values, JSON)
    finally:
        for _ in range(taken):
            service._places.release()
    assert status == 503 and headers["Retry-After"] == "1"
    assert post(server, "/api/search", sentence="a")[0] == 200


def test_a_failure_inside_tells_no_secrets(server, monkeypatch):
    def fail():
        raise RuntimeError("a secret path")

    monkeypatch.setattr(server.service, "about", fail)
    status, _, body = send(server, "GET", "/api/gallery")
    assert status == 500 and b"secret" not in body


def test_an_address_that_is_taken_is_told(server, searcher):
    with pytest.raises(SearchError, match="--port"):
        port = server.address[1]
        SearchServer(Service(searcher), host="127.0.0.1", port=port)


def test_loopback_addresses():
    assert all(map(callers.is_loopback, ("localhost", "127.0.0.1", "::1", "127.9.9.9")))
    assert not any(map(callers.is_loopback, ("0.0.0.0", "::", "example.org", "")))


def test_a_connection_that_brings_no_request_is_closed(server, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    assert talk(server, b"") == b""
    assert talk(server, b"GET / HTTP/1.1\r\nHost: local") == b""
    whole = b"GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    # The clock also runs for the second request of a connection.
    assert talk(server, whole + b"GET / HT").count(b"HTTP/1.1 200") == 1


def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.1)
    head = (
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        b"Content-Type: application/json\r\n\r\n"
    )
    assert talk(server, head + b"{").startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("origin", ["http://[", "null", "", "http://evil.example"])
def test_unusable_origins_are_refused(server, origin):
    assert send(server, "GET", "/", headers={"Origin": origin})[0] == 403


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + 400 * "0", "NaN"])
def test_numbers_beyond_any_similarity_are_refused(server, number):
    body = f'{{"sentence": "a", "minimum": {number}}}'
    status, _, answer = send(server, "POST", "/api/search", body, JSON)
    assert status == 400 and b"wanted a number" in answer


@pytest.mark.parametrize("prefix", ["", "/people"])
def test_behind_a_reverse_proxy(searcher, prefix):
    """One that takes the path's prefix off, and one that leaves it on."""
    names = ["People.example"]
    with running(searcher, names=names, root_path="people/") as server:
        own = {"Host": "people.example", "Origin": "https://people.example"}
        assert send(server, "GET", f"{prefix}/", headers=own)[0] == 200
        # Another proxy sends the address that it asks as the host.
        own = {"Host": "127.0.0.1:7860", "Origin": "https://people.example"}
        status, _, body = send(server, "GET", f"{prefix}/api/gallery", headers=own)
        assert status == 200 and json.loads(body)["pictures"] == 24
        body = json.dumps({"sentence": "a", "limit": 1})
        status, _, answer = send(
            server, "POST", f"{prefix}/api/search", body, {**JSON, **own}
        )
        assert status == 200
        picture = json.loads(answer)["results"][0]["picture"]
        assert send(server, "GET", f"{prefix}{picture}/small", headers=own)[0] == 200
        status, headers, _ = send(server, "GET", "/people", headers=own)
        assert status == 307 and headers["Location"] == "/people/"
        evil = {"Host": "people.example", "Origin": "https://evil.example"}
        assert send(server, "GET", f"{prefix}/", headers=evil)[0] == 403
        evil = {"Host": "evil.example", "X-Forwarded-Host": "people.example"}
        assert send(server, "GET", f"{prefix}/", headers=evil)[0] == 403
        assert send(server, "GET", f"{prefix}/nothing", headers=own)[0] == 404


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes a certificate")
def test_tls(searcher, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    files = {"certificate": str(certificate), "key": str(key)}
    with running(searcher, **files) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection(
            "localhost", server.address[1], context=context, timeout=20
        )
        with contextlib.closing(connection):
            connection.request("GET", "/api/gallery")
            assert json.load(connection.getresponse())["pictures"] == 24
    for wrong in (str(tmp_path / "nothing.pem"), str(key)):
        with pytest.raises(SearchError, match=r"certificate .* cannot be used"):
            SearchServer(Service(searcher), host="127.0.0.1", port=0, certificate=wrong)
