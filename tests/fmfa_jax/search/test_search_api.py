# SPDX-License-Identifier: Apache-2.0
"""The stable API below /v1: what openapi.json says is what the server does."""

import json
import re

import pytest

from fmfa_jax import search
from fmfa_jax.search import server as serving
from fmfa_jax.search import service as limits
from fmfa_jax.search.query import MAX_LETTERS
from tests.fmfa_jax.search.served import BYTES, JSON, credentials, get, post, running
from tests.fmfa_jax.search.served import send as request

SPECIFICATION = json.loads(serving.OPENAPI.read_text())
SCHEMAS = SPECIFICATION["components"]["schemas"]
SENTENCES = ["a man in red", "a woman with a bag", "a man in red"]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "null": type(None),
}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
    "maxLength": lambda value, bound: len(value) <= bound,
    "enum": lambda value, bound: value in bound,
}
NOTES = {"description", "default", "format"}


def schema(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


def wrong(value, schema: dict, at: str = "$") -> list[str]:
    """Where a value is not as a schema of ours says; keywords are those of JSON Schema.

    Beyond it, every property of an object must be described.
    """
    if "$ref" in schema:
        return wrong(value, SCHEMAS[schema["$ref"].rpartition("/")[2]], at)
    known = {"type", "required", "properties", "items", "additionalProperties"}
    assert schema.keys() <= known | BOUNDS.keys() | NOTES, f"{at}: a new keyword"
    if kinds := schema.get("type"):
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fits = any(isinstance(value, TYPES[kind]) for kind in kinds)
        if not fits or isinstance(value, bool):
            return [f"{at}: {value!r} is no {kinds}"]
    if value is None:
        return []
    found = [
        f"{at}: {value!r} against {key} {schema[key]}"
        for key, holds in BOUNDS.items()
        if key in schema and not holds(value, schema[key])
    ]
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        missing = [key for key in schema.get("required", ()) if key not in value]
        found += [f"{at}.{key} is missing" for key in missing]
        found += [f"{at}.{key} is not described" for key in value.keys() - parts.keys()]
        for key in value.keys() & parts.keys():
            found += wrong(value[key], parts[key], f"{at}.{key}")
    if isinstance(value, list) and "items" in schema:
        for place, each in enumerate(value):
            found += wrong(each, schema["items"], f"{at}[{place}]")
    return found


@pytest.fixture(scope="module")
def server(searcher):
    with running(searcher) as server:
        yield server


def answered(path: str, method: str, status: int) -> dict:
    """The schema of an answer."""
    found = SPECIFICATION["paths"][path][method]["responses"][str(status)]
    if "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        found = SPECIFICATION["components"]["responses"][name]
    return found["content"]["application/json"]["schema"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"error": 3}, "is no"),
        ({}, "$.error is missing"),
        ({"error": "x", "more": 1}, "$.more is not described"),
    ],
)
def test_the_check_of_answers_sees_what_is_wrong(value, why):
    assert why in "".join(wrong(value, schema("Error")))
    assert wrong({"error": "x"}, schema("Error")) == []
    assert "maximum" in "".join(wrong({"top": 101}, schema("Question")))
    assert "$.sentences[0]" in "".join(wrong({"sentences": [3]}, schema("Question")))


def test_the_routes_are_those_that_are_described(server):
    (stable,) = [
        each
        for route in server.application.routes[0].routes
        for each in getattr(route, "routes", None) or ()
        if each.path == "/v1"
    ]
    routes = {
        (route.path, method.lower())
        for route in stable.routes
        for method in route.methods - {"HEAD"}
    }
    described = SPECIFICATION["paths"].items()
    assert routes == {(path, method) for path, each in described for method in each}


def test_the_limits_are_those_of_the_code():
    question = SCHEMAS["Question"]["properties"]
    assert question["sentences"]["maxItems"] == limits.SENTENCES
    assert question["sentences"]["items"]["maxLength"] == MAX_LETTERS
    assert question["top"]["maximum"] == limits.LARGEST_PAGE
    upload = SPECIFICATION["paths"]["/example"]["post"]["requestBody"]["content"]
    assert upload["application/octet-stream"]["schema"]["maxLength"] == (
        limits.MAX_UPLOAD
    )
    # All sentences at their longest fit, each letter of two bytes.
    assert limits.SENTENCES * MAX_LETTERS * 2 < serving.MAX_SENTENCES


def test_references_lead_somewhere_and_all_parts_are_used():
    parts = SPECIFICATION["components"]
    text = serving.OPENAPI.read_text()
    named = {
        f"{kind}/{name}" for kind in ("schemas", "responses") for name in parts[kind]
    }
    assert set(re.findall(r'"#/components/(\w+/\w+)"', text)) == named


def test_sentences_are_answered_as_the_page_answers_each(server):
    asked = {"sentences": SENTENCES, "top": 3}
    assert wrong(asked, schema("Question")) == []
    status, answer = post(server, "/v1/search", **asked)
    assert status == 200
    assert wrong(answer, answered("/search", "post", 200)) == []
    assert [each["sentence"] for each in answer["results"]] == SENTENCES
    for result in answer["results"]:
        page = post(server, "/api/search", sentence=result["sentence"], limit=3)[1]
        names = ("rank", "similarity", "file")
        ours = [[hit[name] for name in names] for hit in result["hits"]]
        assert ours == [[hit[name] for name in names] for hit in page["results"]]
        assert result["matches"] == page["matches"] and answer["version"]
    place = answer["results"][0]["hits"][0]["picture"]
    status, headers, _ = request(server, "GET", f"/v1/{place}")
    assert status == 200 and headers["Content-Type"] == "image/jpeg"


def test_an_example_picture_is_asked_alone_or_mixed(server, searcher):
    body = searcher.gallery.read(5)
    status, _, said = request(server, "POST", "/v1/example", body, BYTES)
    key = json.loads(said)
    assert status == 200 and wrong(key, answered("/example", "post", 200)) == []
    _, alone = post(server, "/v1/search", **key, top=1)
    assert alone["results"][0]["sentence"] == ""
    assert alone["results"][0]["hits"][0]["file"] == searcher.gallery.file(5)
    _, mixed = post(server, "/v1/search", **key, sentences=["a hat"], top=1)
    assert mixed["results"][0]["hits"][0]["similarity"] < 1


def test_the_gallery_and_the_file_itself(server):
    status, about = get(server, "/v1/gallery")
    assert status == 200 and wrong(about, answered("/gallery", "get", 200)) == []
    assert get(server, "/v1/openapi.json") == (200, SPECIFICATION)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sentences": []},
        {"sentences": "a man"},
        {"sentences": ["a", 3]},
        {"sentences": ["a"] * (limits.SENTENCES + 1)},
        {"sentences": ["a" * (MAX_LETTERS + 1)]},
        {"sentences": ["a"], "top": 0},
        {"sentences": ["a"], "top": 101},
        {"sentences": ["a"], "minimum": "x"},
        {"sentences": ["a", " "]},
        {"sentences": ["a"], "limit": 3},
        {"example": "nobody"},
    ],
)
def test_a_question_that_cannot_be_used_is_told(server, values):
    status, answer = post(server, "/v1/search", **values)
    assert status == 400 and wrong(answer, answered("/search", "post", 400)) == []


def test_errors_are_as_described(server, searcher):
    large = {**JSON, "Content-Length": str(serving.MAX_SENTENCES + 1)}
    sent = {
        413: request(server, "POST", "/v1/search", b"", large),
        415: request(server, "POST", "/v1/search", b"{}", BYTES),
        403: request(server, "POST", "/v1/search", b"{}", {**JSON, "Origin": "null"}),
    }
    with running(searcher, password="x") as guarded:
        sent[401] = request(guarded, "POST", "/v1/search", b"{}", JSON)
        body = json.dumps({"sentences": ["a"]})
        headers = JSON | credentials("x")
        assert request(guarded, "POST", "/v1/search", body, headers)[0] == 200
    for status, (got, _, body) in sent.items():
        assert got == status
        assert wrong(json.loads(body), answered("/search", "post", status)) == []
    missing = "/v1/picture/V/24/small".replace("V", server.service.version)
    assert request(server, "GET", missing)[0] == 400


def test_people_are_named_where_the_gallery_names_them(
    gallery, encoder, tmp_path, monkeypatch
):
    files = sorted(str(p.relative_to(gallery)) for p in gallery.rglob("*.jpg"))
    lines = [
        {"file": f"./{files[0]}", "captions": "a man", "person": "anna"},
        {"file": files[1], "captions": "a man", "person": 7},
        {"file": files[2], "captions": "a man"},
    ]
    (gallery / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    search.index_gallery(gallery, tmp_path / "index", encoder, batch_size=8)
    service = limits.Service(search.open_searcher(tmp_path / "index"))
    asked = {"sentences": ["a man"], "top": 100}
    hits = service.search_all(asked)["results"][0]["hits"]
    people = {hit["file"]: hit["person"] for hit in hits}
    assert [people[file] for file in files[:4]] == ["anna", "7", None, None]
    (gallery / "captions.jsonl").write_text("{")
    said = []
    monkeypatch.setattr(limits._log, "warning", lambda *told: said.append(told))
    service = limits.Service(search.open_searcher(tmp_path / "index"))
    hits = service.search_all(asked)["results"][0]["hits"]
    assert {hit["person"] for hit in hits} == {None} and len(said) == 1
