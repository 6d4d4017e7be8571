"""A hub on loopback that speaks enough of the API to list, download and publish.

The server is a dictionary of commits; it can lose a revision, break a transfer off or answer with an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import pytest
from huggingface_hub import constants


@dataclass
class FakeHub:
    """Repositories as {repo: {commit: {path: content}}} and {repo: {name: commit}}, and what goes wrong."""

    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    """Path (of any commit) -> how many of its transfers break off half-way."""
    failing: dict[str, int] = field(default_factory=dict)
    """Part of a URL -> status that it is answered with."""
    requests: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    """Branches in the order in which they were committed to."""
    endpoint: str = ""

    def add(self, repo: str, name: str, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(json.dumps({k: hashlib.sha1(v).hexdigest() for k, v in files.items()}).encode())
        digest.update(name.encode())
        commit = digest.hexdigest()
        self.files.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[name] = commit
        return commit

    def downloads(self) -> list[str]:
        return [
            request.rsplit("/", 1)[-1]
            for request in self.requests
            if request.startswith("GET") and "/resolve/" in request
        ]

    def answer(self, method: str, url: str) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlparse(url).path)
        for part, status in self.failing.items():
            if part in path:
                return status, {}, b""
        for repo, names in self.refs.items():
            commits = self.files[repo]
            if path == f"/api/models/{repo}/refs":
                branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in names.items()]
                return 200, {}, json.dumps({"branches": branches, "tags": [], "converts": []}).encode()
            for api in (f"/api/models/{repo}/revision/", f"/api/models/{repo}/tree/", f"/{repo}/resolve/"):
                if not path.startswith(api):
                    continue
                revision, _, file = path.removeprefix(api).partition("/")
                commit = names.get(revision, revision)
                if commit not in commits:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                if "resolve" in api:
                    if file not in commits[commit]:
                        return 404, {"X-Error-Code": "EntryNotFound"}, b""
                    body = commits[commit][file]
                    return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body
                large = "blobs" in parse_qs(urlparse(url).query) or "/tree/" in api
                listing = [self._entry(name, body, large, "/tree/" in api) for name, body in commits[commit].items()]
                content = listing if "/tree/" in api else {"id": repo, "sha": commit, "siblings": listing}
                return 200, {}, json.dumps(content).encode()
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def post(self, url: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Make a repository, a branch, or a commit whose files stand in its lines."""
        path = unquote(urlparse(url).path)
        if path == "/api/repos/create":
            content = json.loads(body)
            repo = "/".join(part for part in (content.get("organization"), content["name"]) if part)
            if repo not in self.refs:
                self.add(repo, "main", {".gitattributes": b""})
            return 200, {}, json.dumps({"url": f"{self.endpoint}/{repo}"}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, b'{"errors": [], "warnings": []}'
        for repo, names in self.refs.items():
            api = f"/api/models/{repo}/"
            if path.startswith(f"{api}branch/"):
                names[path.removeprefix(f"{api}branch/")] = names["main"]
                return 200, {}, b"{}"
            if path.startswith(f"{api}preupload/"):
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return 200, {}, json.dumps({"files": files}).encode()
            if path.startswith(f"{api}commit/"):
                branch = path.removeprefix(f"{api}commit/")
                for part, status in self.failing.items():
                    if part == f"commit/{branch}":
                        return status, {}, b""
                lines = [json.loads(line) for line in body.splitlines()]
                added = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                commit = self.add(repo, branch, {**self.files[repo][names[branch]], **added})
                self.commits.append(branch)
                about = {"commitUrl": f"{self.endpoint}/{repo}/commit/{commit}", "commitOid": commit}
                return 200, {}, json.dumps({"success": True, **about}).encode()
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def _entry(self, name: str, body: bytes, large: bool, tree: bool) -> dict:
        entry: dict = (
            {"path": name, "type": "file", "oid": hashlib.sha1(body).hexdigest()} if tree else {"rfilename": name}
        )
        if large:
            entry |= {"size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
            if name.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(body).hexdigest()
                entry["lfs"] = {"size": len(body), "sha256": sha256, "oid": sha256, "pointerSize": 134}
        return entry


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server with the client switched on line, for it only."""
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fake.requests.append(f"{self.command} {self.path}")
            status, headers, body = fake.answer(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            name = self.path.rsplit("/", 1)[-1]
            if "/resolve/" in self.path and fake.broken.get(name, 0) > 0:
                fake.broken[name] -= 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            self.wfile.write(body)

        def do_POST(self) -> None:
            status, _, body = fake.post(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield fake
    server.shutdown()
    server.server_close()
