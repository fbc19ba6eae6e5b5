"""A stand-in for the Hub on loopback: it serves datasets and models, takes commits, and fails.

root/datasets/USER/NAME/FILES   root/models/USER/NAME/FILES   root/datasets/USER/NAME@REVISION/FILES

    with serve(root) as hub:
        hub.fail("/commit/", 503, 503)         # the first two requests of that kind
        hub.fail("/commit/", "lost", 2.0)      # done, and the reply is dropped; 2 s late
        subprocess.run(..., env={**os.environ, **hub.environment})
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".png")  # kept as LFS objects
READ_TIMEOUT = 20  # seconds in which a reply does not come
OTHERS = "other"  # a user in whose name nobody else writes


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

    def oid(self, name: str) -> str | None:
        """What git, or its LFS, calls the content of a file."""
        if name not in self.files:
            return None
        data = self.files[name].read_bytes()
        if name.endswith(LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def info(self, *, private: bool = False) -> dict[str, Any]:
        """What the API says of a repository."""
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "sha": self.commit,
            "private": private,
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
            depths = range(1, len(relative.splits) + 1) if recursive else [1]
            names |= {str(base / Path(*relative.splits[:depth])) for depth in depths}
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
        splits = [unquote(part) for part in url.path.strip("/").split("/")]
        body = self.body()
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.sent.append(bytes(self.headers) + body)
        self.lost = False
        if self.failed(self.server.fault(self.path)):
            return
        for pattern, answer in self.routes(splits, parse_qs(url.query), body).items():
            if fnmatch(url.path, pattern):
                answer()
                return
        self.missing("EntryNotFound")

    def routes(
        self, splits: list[str], query: dict[str, list[str]], body: bytes
    ) -> dict[str, Callable[[], None]]:
        """What answers, by the pattern of a path; the first that fits."""
        name = "/".join(splits[1:4])
        return {
            "/api/whoami-v2": self.whoami,
            "/api/repos/create": lambda: self.create(json.loads(body)),
            "/api/validate-yaml": lambda: self.json({"errors": [], "warnings": []}),
            "*/objects/batch": lambda: self.batch(json.loads(body)),
            "/lfs/*": lambda: self.put(splits[1], body),
            "/api/*/preupload/*": lambda: self.preupload(name, body),
            "/api/*/commit/*": lambda: self.commit(name, body),
            "/api/*/tag/*": lambda: self.tag(json.loads(body)),
            "/api/*/auth-check/write": lambda: self.answer(403 if OTHERS in splits else 200, b"{}"),
            "/api/datasets/*": lambda: self.api(splits[1:], query, body),
            "/api/models/*": lambda: self.api(splits[1:], query, body),
            "/datasets/*/resolve/*": lambda: self.resolve("datasets", splits[1:]),
            "*/resolve/*": lambda: self.resolve("models", splits),
        }

    def put(self, oid: str, data: bytes) -> None:
        """Keep an LFS object."""
        self.server.objects[oid] = data
        self.answer(200, b"")

    def api(self, splits: list[str], query: dict[str, list[str]], body: bytes) -> None:
        """Information, trees and paths of a repository."""
        kind, user, name, *rest = splits
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
            found = repository.info(private=f"{user}/{name}" in self.server.private)
        self.json(found)

    def failed(self, fault: int | float | str | None) -> bool:
        """Go wrong as scripted; whether nothing else is to be done."""
        if isinstance(fault, int):
            self.answer(fault, b'{"error": "as scripted"}', Retry_After="1")
        elif fault == "silence":
            time.sleep(READ_TIMEOUT)
        elif fault == "reset":
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{")
        elif fault == "words":
            self.answer(200, b"<html>sign in</html>", Content_Type="text/html")
        elif fault and fault.startswith("http"):
            self.answer(307, b"", Location=fault + self.path)
            return True
        else:
            time.sleep(fault if isinstance(fault, float) else 0)
            self.lost = fault == "lost"
            return False
        self.close_connection = True
        return True

    def whoami(self) -> None:
        """Whose token it is, and what it may do."""
        role = {"Bearer hf_writes": "write", "Bearer hf_reads": "read"}.get(
            self.headers.get("Authorization", "")
        )
        if role is None:
            self.answer(401, b'{"error": "Invalid credentials in Authorization header"}')
        else:
            self.json({"name": "USER", "auth": {"accessToken": {"role": role}}})

    def batch(self, asked: dict[str, Any]) -> None:
        """Where to put the LFS objects that are not here yet."""
        host = self.headers["Host"]
        found: list[dict[str, Any]] = []
        for one in asked["objects"]:
            actions = {"upload": {"href": f"http://{host}/lfs/{one['oid']}", "header": {}}}
            known = one["oid"] in self.server.objects
            found.append(one if known else {**one, "actions": actions})
        self.json({"transfer": "basic", "objects": found})

    def tag(self, asked: dict[str, Any]) -> None:
        """Remember a tag."""
        self.server.tags.append(asked["tag"])
        self.json({})

    def json(self, value: Any) -> None:
        """Send a JSON reply, unless it is to be lost."""
        if self.lost:
            self.close_connection = True
            return
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def create(self, asked: dict[str, Any]) -> None:
        """Make an empty repository."""
        name = f"{asked.get('organization') or 'USER'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if name.startswith(f"{OTHERS}/"):
            self.answer(403, b'{"error": "You have no rights under the namespace other"}')
            return
        folder = self.server.root / kind / name
        if folder.is_dir():
            url = f"http://{self.headers['Host']}/{name}"
            self.answer(409, json.dumps({"error": "You already created it", "url": url}).encode())
            return
        folder.mkdir(parents=True)
        self.server.created.append(asked)
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        self.json({"url": f"http://{self.headers['Host']}/{kind}/{name}", "name": name, "id": name})

    def preupload(self, name: str, body: bytes) -> None:
        """Which files go into the commit itself, and what is there by their names."""
        there = Repository(self.server.root / name)
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": there.oid(f["path"]),
            }
            for f in json.loads(body)["files"]
        ]
        self.json({"files": files, "commitOid": "0" * 40})

    def commit(self, name: str, body: bytes) -> None:
        """Write, and delete, the files of a commit."""
        folder = self.server.root / name
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(f"{name}: {value['summary']}")
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(self.server.objects[value["oid"]])
            else:
                assert line["key"] == "deletedFile"
                path.unlink()
        oid = Repository(folder).commit
        url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
        self.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str, splits: list[str]) -> None:
        """The bytes of a file."""
        repository = self.repository(kind, splits[0], splits[1], splits[3])
        if repository is None:
            self.missing("RepoNotFound")
            return
        path = repository.files.get("/".join(splits[4:]))
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


for method in ("GET", "HEAD", "POST", "PUT"):  # http.server calls them by these names
    setattr(Handler, f"do_{method}", Handler.handle_any)


class Hub(ThreadingHTTPServer):
    """The server, what it was asked for, and what it will do wrong."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.requests, self.sent = root, list[str](), list[bytes]()
        self.created, self.private = list[dict[str, Any]](), set[str]()
        self.commits, self.tags, self.objects = list[str](), list[str](), dict[str, bytes]()
        self.script: list[tuple[str, list[int | float | str | None]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.environment = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def fail(self, part: str, *faults: int | float | str | None) -> None:
        """Script what goes wrong with the next requests for such a path; None for nothing."""
        self.script.append((part, [*faults]))

    def fault(self, path: str) -> int | float | str | None:
        """What goes wrong with this request, if anything."""
        for part, faults in self.script:
            if part in path and faults:
                return faults.pop(0)
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing on stderr: connections are cut here on purpose."""


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve a folder on loopback."""
    hub = Hub(root)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
