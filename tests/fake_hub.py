"""A Hugging Face Hub on 127.0.0.1, kept in memory: as much of it as uploads, downloads and `load_dataset` ask for."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit|branch|discussions)(?:/([^/]+)(/.+)?)?)?"
)
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """Branches name commits; a commit is all files of the repo, by path."""

    private: bool = False
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = repr((len(self.commits), sorted(files.items()))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.branches[branch], self.commits[sha] = sha, files
        return sha


class NotFound(Exception):
    """Its text is the `X-Error-Code` of the reply."""


class FakeHub:
    """
    Within a `with` block, the server runs at `endpoint`. `repos` is what it stores, by (type, id), where the type is
    `"models"` or `"datasets"`; `asked` are the methods and paths of all requests, `downloads` the paths of the files
    that were fetched, `tokens` what the requests to repos showed. It refuses the actions in `refuses`, such as
    "commit", and commits wait until `accepts` is set, as it is at first.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked: list[str] = []
        self.downloads: list[str] = []
        self.tokens: set[str] = set()
        self.refuses: set[str] = set()
        self.accepts = threading.Event()
        self.accepts.set()

    def __enter__(self) -> "FakeHub":
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.accepts.set()
        self.server.shutdown()
        self.server.server_close()

    def create(self, kind: str, repo_id: str, private: bool = False) -> bool:
        """Whether the repo is new."""
        if (kind, repo_id) in self.repos:
            return False
        self.repos[kind, repo_id] = Repo(private)
        self.repos[kind, repo_id].commit("main", {".gitattributes": b""})
        return True

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        return self.resolve(kind, repo_id, revision)[2]

    def resolve(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, str, dict[str, bytes]]:
        """The repo, the commit that the revision names, and the commit's files."""
        repo = self.repos.get((kind, repo_id))
        if repo is None:
            raise NotFound("RepoNotFound")
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise NotFound("RevisionNotFound")
        return repo, sha, repo.commits[sha]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the answer to its headers

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {url.path}")
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.route(url.path)
        except NotFound as error:
            self.reply({"error": str(error)}, 404, {"X-Error-Code": str(error)})

    def route(self, path: str) -> None:
        if path == "/api/repos/create":
            self.create_repo()
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif match := API.fullmatch(path):
            self.hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            kind, repo_id, action, revision, folder = match.groups()
            name = (action or "revision").replace("-", "_")
            if name == "commit":
                self.hub.accepts.wait()
            if name in self.hub.refuses:
                return self.reply({"error": "you may not write here"}, 403)
            getattr(self, name)(kind, repo_id, unquote(revision or "main"), (folder or "").strip("/"))
        elif match := FILE.fullmatch(path):
            kind, repo_id, revision, file = match.groups()
            self.download("datasets" if kind else "models", repo_id, unquote(revision), unquote(file))
        else:
            raise NotFound(f"no such endpoint: {self.command} {path}")

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        kind, repo_id = asked.get("type", "model") + "s", f"{asked.get('organization') or 'user'}/{asked['name']}"
        new = self.hub.create(kind, repo_id, asked.get("visibility") == "private")
        prefix = "datasets/" if kind == "datasets" else ""
        self.reply({"url": f"{self.hub.endpoint}/{prefix}{repo_id}"}, 200 if new else 409)

    def revision(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        _, sha, files = self.hub.resolve(kind, repo_id, revision)
        siblings = [{"rfilename": path} for path in files]
        self.reply({"id": repo_id, "sha": sha, "siblings": siblings, "tags": [], "private": False, "gated": False})

    def tree(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        _, _, files = self.hub.resolve(kind, repo_id, revision)
        recursive = self.query.get("recursive", [""])[0].lower() == "true"
        entries = list(list_entries(files, folder, recursive))
        if folder and not entries:
            raise NotFound("EntryNotFound")
        self.reply(entries)

    def paths_info(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        _, _, files = self.hub.resolve(kind, repo_id, revision)
        asked = json.loads(self.body)["paths"]
        self.reply([entry for entry in list_entries(files, "", True) if entry["path"] in asked])

    def preupload(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        # "regular" makes the client send contents inside the commit: no LFS and no Xet to imitate.
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        self.reply({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    def branch(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        repo, sha, _files = self.hub.resolve(kind, repo_id, "main")
        new = revision not in repo.branches
        repo.branches.setdefault(revision, sha)
        self.reply({}, 200 if new else 409)

    def commit(self, kind: str, repo_id: str, revision: str, folder: str) -> None:
        repo, _sha, files = self.hub.resolve(kind, repo_id, revision)
        files = dict(files)
        for line in map(json.loads, self.body.splitlines()):
            if line["key"] == "header":
                repo.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha = repo.commit(revision, files)
        self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}"})

    def discussions(self, kind: str, repo_id: str, *_: str) -> None:
        """Opens the repo's one pull request (POST), or shows it (GET)."""
        repo, sha, _files = self.hub.resolve(kind, repo_id, "main")
        repo.branches.setdefault("refs/pr/1", sha)
        about = {"num": 1, "title": "", "status": "open", "isPullRequest": True}
        of_repo = {"repo": {"name": repo_id, "type": kind[:-1]}, "changes": {"base": "refs/heads/main"}}
        rest = {"createdAt": "2026-01-01T00:00:00.000Z", "events": [], "filesWithConflicts": []}
        self.reply({**about, **of_repo, **rest})

    def download(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        _, sha, files = self.hub.resolve(kind, repo_id, revision)
        if path not in files:
            raise NotFound("EntryNotFound")
        if self.command == "GET":
            self.hub.downloads.append(path)
        content, about = files[path], {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"'}
        if (part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))) is None:
            return self.reply(content, 200, about)
        first, last = int(part[1]), min(int(part[2]), len(content) - 1)
        about["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(content[first : last + 1], 206, about)

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Not to the test's output."""


def list_entries(files: dict[str, bytes], folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """What the Hub's tree listing says of the files and folders under a folder."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    for path in sorted(folders.union(files)):
        parents = [str(parent) for parent in PurePosixPath(path).parents]
        if (folder or ".") in (parents if recursive else parents[:1]):
            content = files.get(path, b"")
            kind = "file" if path in files else "directory"
            yield {"type": kind, "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
