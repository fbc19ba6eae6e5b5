"""A fake Hub on localhost that serves datasets and models, accepts commits, and fails on request.

root/datasets/USER/NAME/FILES   root/models/USER/NAME/FILES   root/datasets/USER/NAME@REVISION/FILES

    with serve(root) as hub:
        hub.fail("/commit/", 503, 503)     # the first two requests for such a path
        hub.fail("/commit/", "lost", 2.0)  # done, but without a reply; then 2 seconds late
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

LARGE = (".safetensors", ".png")  # stored as LFS objects
SILENCE = 20  # seconds without a reply
OTHER_USER = "other"  # no token may write to the repositories of this user


class Repository:
    """One dataset or model; its commit is a hash of its content."""

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
        """Return the object id of a file in git or git LFS; None if there is no such file."""
        if name not in self.files:
            return None
        data = self.files[name].read_bytes()
        if name.endswith(LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def info(self, *, private: bool = False) -> dict[str, Any]:
        """Describe the repository as the API does."""
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
        """List files and folders by path, as the API does."""
        folders = {str(parent) for name in self.files for parent in Path(name).parents} - {"."}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "oid": "0" * 40} for name in folders & set(paths)
        ]
        for name in paths:
            if name in self.files:
                data = self.files[name].read_bytes()
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                entries.append({"type": "file", "path": name, "size": len(data), "oid": oid})
        return entries

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """List the content of a folder of the repository."""
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
    """The HTTP handler for the requests of datasets, transformers and huggingface_hub."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *_: Any) -> None:
        """Print nothing on stderr."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send a reply."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        """Send the reply of the Hub for something that does not exist."""
        self.answer(404, b"{}", X_Error_Code=code)

    def repository(self, kind: str, user: str, name: str, revision: str) -> Repository | None:
        """Find a repository at a branch, tag or commit; None if it does not exist."""
        folder = self.server.root / kind / user
        repositories = [
            Repository(path) for path in (folder / name, *folder.glob(f"{name}@*")) if path.is_dir()
        ]
        named = [
            r for r in repositories if r.folder.name == f"{name}@{revision}" or r.commit == revision
        ]
        return next(iter(named or (repositories if revision == "main" else [])), None)

    def body(self) -> bytes:
        """Read the body of the request, also if it is sent in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_any(self) -> None:
        """Route a request."""
        url = urlsplit(self.path)
        segments = [unquote(part) for part in url.path.strip("/").split("/")]
        body = self.body()
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.sent.append(bytes(self.headers) + body)
        self.drops_reply = False
        if self.fails(self.server.fault(self.path)):
            return
        for pattern, answer in self.routes(segments, parse_qs(url.query), body).items():
            if fnmatch(url.path, pattern):
                answer()
                return
        self.missing("EntryNotFound")

    def routes(
        self, segments: list[str], query: dict[str, list[str]], body: bytes
    ) -> dict[str, Callable[[], None]]:
        """Return the functions that answer, by path pattern; the first match counts."""
        name = "/".join(segments[1:4])
        return {
            "/api/whoami-v2": self.whoami,
            "/api/repos/create": lambda: self.create(json.loads(body)),
            "/api/validate-yaml": lambda: self.json({"errors": [], "warnings": []}),
            "*/objects/batch": lambda: self.batch(json.loads(body)),
            "/lfs/*": lambda: self.put(segments[1], body),
            "/api/*/preupload/*": lambda: self.preupload(name, body),
            "/api/*/commit/*": lambda: self.commit(name, body),
            "/api/*/tag/*": lambda: self.tag(json.loads(body)),
            "/api/*/auth-check/write": lambda: self.answer(
                403 if OTHER_USER in segments else 200, b"{}"
            ),
            "/api/datasets/*": lambda: self.api(segments[1:], query, body),
            "/api/models/*": lambda: self.api(segments[1:], query, body),
            "/datasets/*/resolve/*": lambda: self.resolve("datasets", segments[1:]),
            "*/resolve/*": lambda: self.resolve("models", segments),
        }

    def put(self, oid: str, data: bytes) -> None:
        """Store an LFS object."""
        self.server.objects[oid] = data
        self.answer(200, b"")

    def api(self, segments: list[str], query: dict[str, list[str]], body: bytes) -> None:
        """Answer requests for the description, folders and paths of a repository."""
        kind, user, name, *rest = segments
        repository = self.repository(kind, user, name, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            self.missing("RepoNotFound")
            return
        if rest[:1] == ["tree"]:
            answer: Any = repository.tree("/".join(rest[2:]), recursive="recursive" in query)
        elif rest[:1] == ["paths-info"]:
            form = body.decode()
            paths = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form)["paths"]
            answer = repository.entries([paths] if isinstance(paths, str) else paths)
        else:
            answer = repository.info(private=f"{user}/{name}" in self.server.private)
        self.json(answer)

    def fails(self, fault: int | float | str | None) -> bool:
        """Fail as scripted; return whether the request is finished."""
        if isinstance(fault, int):
            self.answer(fault, b'{"error": "as scripted"}', Retry_After="1")
        elif fault == "silence":
            time.sleep(SILENCE)
        elif fault == "reset":
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{")
        elif fault == "words":
            self.answer(200, b"<html>sign in</html>", Content_Type="text/html")
        elif isinstance(fault, str) and fault.startswith("http"):
            self.answer(307, b"", Location=fault + self.path)
            return True
        else:
            time.sleep(fault if isinstance(fault, float) else 0)
            self.drops_reply = fault == "lost"
            return False
        self.close_connection = True
        return True

    def whoami(self) -> None:
        """Send the user and role of a token."""
        role = {"Bearer hf_writes": "write", "Bearer hf_reads": "read"}.get(
            self.headers.get("Authorization", "")
        )
        if role is None:
            self.answer(401, b'{"error": "Invalid credentials in Authorization header"}')
        else:
            self.json({"name": "USER", "auth": {"accessToken": {"role": role}}})

    def batch(self, request: dict[str, Any]) -> None:
        """Send where to upload the LFS objects that are not stored yet."""
        host = self.headers["Host"]
        objects: list[dict[str, Any]] = []
        for lfs_object in request["objects"]:
            oid = lfs_object["oid"]
            actions = {"upload": {"href": f"http://{host}/lfs/{oid}", "header": {}}}
            is_stored = oid in self.server.objects
            objects.append(lfs_object if is_stored else {**lfs_object, "actions": actions})
        self.json({"transfer": "basic", "objects": objects})

    def tag(self, request: dict[str, Any]) -> None:
        """Record a tag."""
        self.server.tags.append(request["tag"])
        self.json({})

    def json(self, value: Any) -> None:
        """Send a JSON reply, unless the script drops it."""
        if self.drops_reply:
            self.close_connection = True
            return
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def create(self, request: dict[str, Any]) -> None:
        """Create an empty repository."""
        name = f"{request.get('organization') or 'USER'}/{request['name']}"
        kind = f"{request.get('type') or 'model'}s"
        if name.startswith(f"{OTHER_USER}/"):
            self.answer(403, b'{"error": "You have no rights under the namespace other"}')
            return
        folder = self.server.root / kind / name
        if folder.is_dir():
            url = f"http://{self.headers['Host']}/{name}"
            self.answer(409, json.dumps({"error": "You already created it", "url": url}).encode())
            return
        folder.mkdir(parents=True)
        self.server.created.append(request)
        if request.get("visibility") == "private":
            self.server.private.add(name)
        self.json({"url": f"http://{self.headers['Host']}/{kind}/{name}", "name": name, "id": name})

    def preupload(self, name: str, body: bytes) -> None:
        """Send which files the commit contains itself, and the object ids of existing files."""
        repository = Repository(self.server.root / name)
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": repository.oid(f["path"]),
            }
            for f in json.loads(body)["files"]
        ]
        self.json({"files": files, "commitOid": "0" * 40})

    def commit(self, name: str, body: bytes) -> None:
        """Write and delete the files of a commit."""
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

    def resolve(self, kind: str, segments: list[str]) -> None:
        """Send the bytes of a file."""
        repository = self.repository(kind, segments[0], segments[1], segments[3])
        if repository is None:
            self.missing("RepoNotFound")
            return
        path = repository.files.get("/".join(segments[4:]))
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


for method in ("GET", "HEAD", "POST", "PUT"):  # http.server calls handlers by these names.
    setattr(Handler, f"do_{method}", Handler.handle_any)


class Hub(ThreadingHTTPServer):
    """The server, the requests that it received, and the faults that it will make."""

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
        """Script the faults of the next requests whose path contains `part`; None is no fault."""
        self.script.append((part, [*faults]))

    def fault(self, path: str) -> int | float | str | None:
        """Return the fault of this request, if any."""
        for part, faults in self.script:
            if part in path and faults:
                return faults.pop(0)
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing on stderr, because connections are cut on purpose."""


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve a folder on localhost."""
    hub = Hub(root)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
