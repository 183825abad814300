"""A stand-in of the Hugging Face hub on this machine: the same HTTP interface, so that the real clients talk to it.

    with StandInHub() as hub:
        commit = hub.add("model", "tiny/llama", folder)          # main now means this commit
        subprocess.run(..., env={**os.environ, **hub.environment(home)})

What `huggingface_hub`, `transformers`, `datasets` and `sentence-transformers` ask for is there: a repository at a
revision, its tree (in pages), its files (HEAD and GET, byte ranges, a redirect to another host for large ones), and the
error codes by which a client tells a gated repository from one that does not exist. `requests` keeps what was asked.
There is no Xet storage behind it: no answer offers any, so clients take plain HTTP of their own accord.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 2  # files in a page of a tree; the hub has 1000
LARGE = (".safetensors", ".parquet", ".bin")  # what the hub keeps elsewhere and redirects to
API = re.compile(r"/api/(models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?$")
FILE = re.compile(r"/(?P<datasets>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class Repository:
    """Commits (sha -> {path: bytes}) and what the branches point to."""

    gated: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)

    def commit_of(self, revision):
        return revision if revision in self.commits else self.branches.get(revision)


class StandInHub:
    """A server on 127.0.0.1 with the repositories that were added; a context manager."""

    def __init__(self):
        self.repositories, self.requests = {}, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind, name, folder, *, gated=False):
        """Commit the files of a folder to `main` of a "model" or "dataset"; the sha of the commit."""
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault((kind, name), Repository(gated))
        parts = [name, str(len(repository.commits)), *(f"{path} {_sha256(data)}" for path, data in files.items())]
        sha = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        repository.commits[sha] = files
        repository.branches["main"] = sha
        return sha

    def environment(self, home, **more):
        """Variables under which a process takes this for the hub, with a cache of its own in `home`."""
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        return {**ours, "NO_PROXY": "127.0.0.1,localhost", **more}

    def asked(self, pattern):
        """The requests whose path matches, as "METHOD path"."""
        return [request for request in self.requests if re.search(pattern, request)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self):
        self.address = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(self.address.path)
        if path.startswith("/stored/"):
            return self.send_bytes(self.stored(path.rpartition("/")[2]))
        if found := API.match(self.address.path):
            return self.api(found["id"], "dataset" if found[1] == "datasets" else "model", found["what"], found["rest"])
        if found := FILE.match(path):
            return self.file(found["id"], "dataset" if found["datasets"] else "model", found["revision"], found["path"])
        return self.refuse(404, None, "Not found")

    # ---- repositories

    def repository(self, kind, name):
        """The repository, or None after an answer: without a token the hub does not say whether a name exists."""
        found = self.hub.repositories.get((kind, name))
        if found is None and self.headers.get("Authorization"):
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif found is None:
            # The hub gives no code here; its client then knows by https://, which this is not, that it is the hub's.
            self.refuse(401, "RepoNotFound", "Invalid username or password.")
        return found

    def api(self, name, kind, what, rest):
        repository = self.repository(kind, name)
        if repository is None:
            return None
        revision, _, folder = (rest or "main").partition("/")
        sha = repository.commit_of(unquote(revision))
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        files = repository.commits[sha]
        if what == "tree":
            return self.tree(files, unquote(folder), sha)
        if what == "paths-info":
            form = parse_qs(self.body.decode()) if b"=" in self.body else {}
            wanted = form.get("paths") or json.loads(self.body or b"{}").get("paths", [])
            return self.send_json([_entry(p, files[p], sha) for p in wanted if p in files])
        siblings = [{"rfilename": path} for path in files]
        facts = {"id": name, "sha": sha, "siblings": siblings, "private": False, "disabled": False, "tags": []}
        facts |= {"gated": "auto" if repository.gated else False, "downloads": 0, "likes": 0}
        return self.send_json(facts)

    def tree(self, files, folder, sha):
        query = parse_qs(self.address.query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = _entries(files, folder, recursive, sha)
        if folder and not entries:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(entries):
            query["cursor"] = [str(first + PAGE)]
            text = "&".join(f"{name}={values[0]}" for name, values in query.items())
            headers["Link"] = f'<{self.hub.endpoint}{self.address.path}?{text}>; rel="next"'
        return self.send_json(entries[first : first + PAGE], headers)

    # ---- files

    def file(self, name, kind, revision, path):
        repository = self.repository(kind, name)
        if repository is None:
            return None
        if repository.gated:
            status = 403 if self.headers.get("Authorization") else 401
            return self.refuse(status, "GatedRepo", f"Access to {kind} {name} is restricted.")
        sha = repository.commit_of(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = {"X-Repo-Commit": sha}
        if path not in repository.commits[sha]:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        data = repository.commits[sha][path]
        if not path.endswith(LARGE):
            return self.send_bytes(data, {**commit, "ETag": f'"{_blob(data)}"'})
        digest = _sha256(data)
        # Another host, as the hub's storage is: a redirect within the hub its client would follow even for metadata.
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        linked = {"Location": f"{elsewhere}/stored/{digest}", "X-Linked-Size": str(len(data))}
        return self.send(302, b"", {**commit, **linked, "X-Linked-ETag": f'"{digest}"'})

    def stored(self, digest):
        every = (
            data
            for repo in self.hub.repositories.values()
            for files in repo.commits.values()
            for data in files.values()
        )
        return next(data for data in every if _sha256(data) == digest)

    # ---- answers

    def refuse(self, status, code, message, headers=None):
        codes = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.send(status, json.dumps({"error": message}).encode(), {**codes, **(headers or {})})

    def send_json(self, value, headers=None):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, data, headers=None):
        headers = {"Accept-Ranges": "bytes", **(headers or {})}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.send(200, data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.send(206, data[first : last + 1], headers)

    def send(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entries(files, folder, recursive, sha):
    """Files (and without `recursive` the folders) below a folder, as the tree lists them."""
    prefix = f"{folder}/" if folder else ""
    below = [path for path in files if path.startswith(prefix)]
    here = [path for path in below if recursive or "/" not in path.removeprefix(prefix)]
    folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in set(below) - set(here)}
    return [_directory(path, sha) for path in sorted(folders)] + [_entry(path, files[path], sha) for path in here]


def _entry(path, data, sha):
    entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data), "lastCommit": _last_commit(sha)}
    return entry | (
        {"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 134}} if path.endswith(LARGE) else {}
    )


def _directory(path, sha):
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid, "lastCommit": _last_commit(sha)}


def _last_commit(sha):
    return {"id": sha, "title": "added", "date": "2024-08-05T00:00:00.000Z"}


def _blob(data):
    """Git's name of a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
