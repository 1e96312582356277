"""A hub of models on this machine: as much of the Hugging Face hub's interface as publishing needs, over real HTTP.

It keeps what it was sent and refuses what the real one refuses: no token, a repository that is not there, a file whose
digest is not the announced one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

TOKEN: Final = "hf_of_the_tests"


@dataclass
class FakeRepo:
    """One repository.

    Attributes:
        private: as it was made.
        files: name -> content.
        commits: messages, in order.
    """

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class FakeHub:
    """The whole hub.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        repos: `OWNER/NAME` -> repository.
        blobs: sha256 -> content sent as large file.
        refuse: path -> status that is answered instead.
    """

    endpoint: str = ""
    repos: dict[str, FakeRepo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    hub: FakeHub


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return cast("_Server", self.server).hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: object = None, code: str = "") -> None:
        data = json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        if path in self.hub.refuse:
            self._answer(self.hub.refuse[path], {"error": "as the test asked"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/blobs/"):
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._route(path, body)

    def _route(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.startswith("/blobs/"):
            self._blob(path.removeprefix("/blobs/"), body)
        elif match := re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?/(tree|preupload|commit|info)/(.+)", path
        ):
            repo = self.hub.repos.get(match[1])
            if repo is None:
                self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
            else:
                {"tree": self._tree, "preupload": self._preupload, "commit": self._commit, "info": self._lfs}[match[2]](
                    repo, body
                )
        else:
            self._answer(404, {"error": f"nothing at {path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.hub.repos:
            self._answer(409, {"error": "You already created this model repo"})
            return
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repos[name] = FakeRepo(private)
        self._answer(200, {"url": f"{self.hub.endpoint}/{name}"})

    def _tree(self, repo: FakeRepo, _: bytes) -> None:
        found = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in repo.files.items()]
        self._answer(200, found)

    def _preupload(self, repo: FakeRepo, body: bytes) -> None:
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for f in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _lfs(self, repo: FakeRepo, body: bytes) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.endpoint}/blobs/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _blob(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer(400, {"error": "another digest"})
            return
        self.hub.blobs[oid] = body
        self._answer(200)

    def _commit(self, repo: FakeRepo, body: bytes) -> None:
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                repo.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "header":
                repo.commits.append(value["summary"])
        name = next(name for name, found in self.hub.repos.items() if found is repo)
        self._answer(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 (the base class calls them so)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve an empty hub on a free port of this machine until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
