# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub in a thread, as far as its library asks for one."""

import base64
import hashlib
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pt", ".bin")
"""Ends of files that are stored by their SHA-256."""


def digest(name: str, content: bytes) -> str:
    """What the hub calls a content by."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Hub:
    """Repositories, served at `url`.

    Attributes:
        commits: (repository, commit) -> file -> content.
        branches: (repository, branch) -> commit.
        private: Repositories that were made to be seen by few.
        faults: File -> "short", "wrong" or "fail": how it is sent.
        asked: Each request, as "GET /path".
        wait: Cleared, it keeps all requests without an answer.
    """

    def __init__(self) -> None:
        """Serve in a thread until `close`."""
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.private: set[str] = set()
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []
        self.large: dict[str, bytes] = {}
        self.wait = threading.Event()
        self.wait.set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = partial(self._server.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; the commit that it makes."""
        before = self.branches.get((repo, branch), "")
        whole = self.commits.get((repo, before), {}) | files
        listed = sorted((name, digest(name, each)) for name, each in whole.items())
        made = hashlib.sha1(json.dumps([before, listed]).encode()).hexdigest()
        self.commits[repo, made] = whole
        self.branches[repo, branch] = made
        return made

    def close(self) -> None:
        """End the thread."""
        self.wait.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *parts: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        self.path = unquote(self.path)
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.wait.wait()
        path = urlsplit(self.path).path
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(self, *found.groups())
                return
        self._send(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status: int, value: object = None, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files; None if an error was answered."""
        if not any(each == repo for each, _ in self.hub.branches):
            self._send(404, {"error": "none"}, X_Error_Code="RepoNotFound")
            return None
        commit = self.hub.branches.get((repo, revision), revision)
        if (repo, commit) not in self.hub.commits:
            self._send(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
            return None
        return commit, self.hub.commits[repo, commit]

    def info(self, repo: str, revision: str) -> None:
        if found := self._files(repo, revision):
            commit, files = found
            listed = [
                {"rfilename": name, "size": len(each), "blobId": digest("", each)}
                for name, each in files.items()
            ]
            self._send(200, {"id": repo, "sha": commit, "siblings": listed})

    def tree(self, repo: str, revision: str) -> None:
        if found := self._files(repo, revision):
            listed = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(each),
                    "oid": digest("", each),
                }
                for name, each in found[1].items()
            ]
            self._send(200, listed)

    def file(self, repo: str, revision: str, name: str) -> None:
        if not (found := self._files(repo, revision)):
            return
        commit, files = found
        if name not in files:
            self._send(404, {"error": "none"}, X_Error_Code="EntryNotFound")
            return
        content, sent = files[name], files[name]
        fault = self.hub.faults.get(name) if self.command == "GET" else None
        if fault == "fail":
            self._send(500, {"error": "broken"})
            return
        if fault == "short":
            sent = content[: len(content) // 2]
        if fault == "wrong":
            sent = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, sent, ETag=f'"{digest(name, content)}"', X_Repo_Commit=commit)

    def create(self) -> None:
        asked = json.loads(self._body())
        repo = f"{asked['organization']}/{asked['name']}"
        if any(each == repo for each, _ in self.hub.branches):
            self._send(409, {"error": "there", "url": f"{self.hub.url}/{repo}"})
            return
        if asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def branch(self, repo: str, branch: str) -> None:
        self._body()
        self.hub.branches.setdefault((repo, branch), self.hub.branches[repo, "main"])
        self._send(200, {})

    def modes(self, repo: str, revision: str) -> None:
        names = [each["path"] for each in json.loads(self._body())["files"]]
        modes = [
            {
                "path": name,
                "uploadMode": "lfs" if name.endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for name in names
        ]
        self._send(200, {"files": modes})

    def card(self) -> None:
        text = json.loads(self._body())["content"]
        wrong = [] if text.startswith("---\n") else [{"message": "no head"}]
        self._send(200, {"errors": wrong, "warnings": []})

    def batch(self, repo: str) -> None:
        objects = json.loads(self._body())["objects"]
        for each in objects:
            href = f"{self.hub.url}/upload/{each['oid']}"
            each["actions"] = {"upload": {"href": href}}
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        self.hub.large[oid] = self._body()
        self._send(200, {})

    def add(self, repo: str, revision: str) -> None:
        files = {}
        for line in self._body().splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if each["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        made = self.hub.commit(repo, files, revision)
        url = f"{self.hub.url}/{repo}/commit/{made}"
        self._send(200, {"commitUrl": url, "commitOid": made})


REPO = r"([^/]+/[^/]+)"
ROUTES = [
    (rf"GET /api/models/{REPO}/revision/(.+)", _Handler.info),
    (rf"GET /api/models/{REPO}/tree/(.+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", _Handler.file),
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{REPO}/branch/(.+)", _Handler.branch),
    (rf"POST /api/models/{REPO}/preupload/(.+)", _Handler.modes),
    (rf"POST /api/models/{REPO}/commit/(.+)", _Handler.add),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"POST /api/validate-yaml", _Handler.card),
    (r"PUT /upload/(\w+)", _Handler.upload),
]
