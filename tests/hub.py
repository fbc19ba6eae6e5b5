"""A stand-in for the Hub on loopback: it serves datasets and models, and takes commits.

root/datasets/USER/NAME/FILES   root/models/USER/NAME/FILES   root/datasets/USER/NAME@REVISION/FILES
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Repository:
    """One dataset or model, at the commit that its content makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{folder.parent.name}/{folder.name.split('@')[0]}"
        self.files = {
            str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()
        }
        digest = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files.items():
            digest.update(name.encode() + path.read_bytes())
        self.commit = digest.hexdigest()

    def info(self) -> dict[str, Any]:
        """What the API says of a repository."""
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "sha": self.commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in self.files],
        }

    def entries(self, paths: list[str]) -> list[dict[str, Any]]:
        """Files and folders by path, as the API lists them."""
        folders = {str(parent) for name in self.files for parent in Path(name).parents} - {"."}
        found: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "oid": "0" * 40} for name in folders & set(paths)
        ]
        for name in paths:
            if name in self.files:
                data = self.files[name].read_bytes()
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                found.append({"type": "file", "path": name, "size": len(data), "oid": oid})
        return found

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """What a folder of the repository holds."""
        base = Path(under or ".")
        names = set()
        for name in self.files:
            if base != Path() and base not in Path(name).parents:
                continue
            relative = Path(name).relative_to(base)
            depths = range(1, len(relative.parts) + 1) if recursive else [1]
            names |= {str(base / Path(*relative.parts[:depth])) for depth in depths}
        return self.entries(sorted(names))


class Handler(BaseHTTPRequestHandler):
    """Answers what datasets, transformers and huggingface_hub ask for."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a reply."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        """The Hub's way of saying that something is not there."""
        self.answer(404, b"{}", X_Error_Code=code)

    def repository(self, kind: str, user: str, name: str, revision: str) -> Repository | None:
        """A repository at a branch, tag or commit, if it is there."""
        folder = self.server.root / kind / user
        found = [
            Repository(path) for path in (folder / name, *folder.glob(f"{name}@*")) if path.is_dir()
        ]
        named = [r for r in found if r.folder.name == f"{name}@{revision}" or r.commit == revision]
        return next(iter(named or (found if revision == "main" else [])), None)

    def body(self) -> bytes:
        """What was sent, whole or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def handle_any(self) -> None:
        """Route a request."""
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.body()
        if parts == ["api", "repos", "create"]:
            self.create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self.json({"errors": [], "warnings": []})
        elif parts[0] == "api" and parts[-2:-1] in (["preupload"], ["commit"]):
            getattr(self, parts[-2])("/".join(parts[1:4]), body)
        elif parts[0] == "api" and len(parts) >= 4 and parts[1] in ("datasets", "models"):
            self.api(parts[1:], parse_qs(url.query), body)
        elif "resolve" in parts:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            self.resolve(kind, parts)
        else:
            self.missing("EntryNotFound")

    def api(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        """Information, trees and paths of a repository."""
        kind, user, name, *rest = parts
        repository = self.repository(kind, user, name, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            self.missing("RepoNotFound")
            return
        if rest[:1] == ["tree"]:
            found: Any = repository.tree("/".join(rest[2:]), recursive="recursive" in query)
        elif rest[:1] == ["paths-info"]:
            form = body.decode()
            asked = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form)["paths"]
            found = repository.entries([asked] if isinstance(asked, str) else asked)
        else:
            found = repository.info()
        self.json(found)

    def json(self, value: Any) -> None:
        """Send a JSON reply."""
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def create(self, asked: dict[str, Any]) -> None:
        """Make an empty repository."""
        name = f"{asked.get('organization') or 'USER'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        (self.server.root / kind / name).mkdir(parents=True, exist_ok=True)
        self.server.created.append(asked)
        self.json({"url": f"http://{self.headers['Host']}/{kind}/{name}", "name": name, "id": name})

    def preupload(self, name: str, body: bytes) -> None:
        """Ask for every file inside the commit."""
        files = [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for f in json.loads(body)["files"]
        ]
        self.json({"files": files, "commitOid": "0" * 40})

    def commit(self, name: str, body: bytes) -> None:
        """Write the files of a commit."""
        folder = self.server.root / name
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                path = folder / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
        oid = Repository(folder).commit
        url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
        self.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str, parts: list[str]) -> None:
        """The bytes of a file."""
        repository = self.repository(kind, parts[0], parts[1], parts[3])
        if repository is None:
            self.missing("RepoNotFound")
            return
        path = repository.files.get("/".join(parts[4:]))
        if path is None:
            self.missing("EntryNotFound")
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        headers = {
            "ETag": f'"{etag}"',
            "X_Repo_Commit": repository.commit,
            "Accept_Ranges": "bytes",
        }
        span = self.headers.get("Range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) if last else len(data) - 1, len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{end}/{len(data)}"
            self.answer(206, data[int(first) : end + 1], **headers)
        else:
            self.answer(200, data, **headers)


for method in ("GET", "HEAD", "POST"):  # http.server calls them by these names
    setattr(Handler, f"do_{method}", Handler.handle_any)


@contextmanager
def serve(root: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serve a folder; gives the environment a process needs to find it, and the requests it got."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.requests, server.created = root, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        yield environment, server.requests
    finally:
        server.shutdown()
        server.server_close()
