"""A hub on loopback: what huggingface_hub asks of a server to make a repository and commit regular and large files."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_secretsecretsecret"
# Whether a file is large is the hub's to say.
LARGE = (".safetensors", ".bin", ".gguf")


class Hub:
    """What the server holds, and how it misbehaves.

    Attributes:
        repos: Repository to its visibility, `private` or `public`.
        files: Committed bytes by repository and path.
        commits: (repository, branch, message, paths) of each commit.
        requests: (method, path, Authorization) of every request.
        faults: Answers in the place of the true ones: end of a path to (status, text).
    """

    def __init__(self):
        self.repos, self.files, self.commits, self.requests, self.faults = {}, {}, [], [], {}
        self.large = {}
        self.url = ""

    def answer(self, method, path, headers, body):
        """Return (status, JSON value) of one request."""
        if path.startswith("/store/"):
            oid = path.removeprefix("/store/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return 200, {}
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": f"Invalid credentials: {headers.get('authorization')}"}
        if path == "/api/validate-yaml":
            is_fine = json.loads(body)["content"].startswith("---\n")
            return (200, {"warnings": []}) if is_fine else (400, {"errors": [{"message": "no front matter"}]})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
            self.repos[repo] = asked["visibility"]
            return 200, {"url": f"{self.url}/{repo}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"objects": [self.action(it) for it in json.loads(body)["objects"]]}
        repo = "/".join(path.split("/")[3:5])
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if method == "GET":
            head = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
            return 200, {"id": repo, "private": self.repos[repo] == "private", "sha": head}
        if "/preupload/" in path:
            return 200, {"files": [self.mode(repo, it["path"]) for it in json.loads(body)["files"]]}
        assert "/commit/" in path, path
        return 200, self.commit(repo, path.rsplit("/", 1)[1], [json.loads(line) for line in body.splitlines()])

    def action(self, it):
        known = {"oid": it["oid"], "size": it["size"]}
        return (
            known
            if it["oid"] in self.large
            else known | {"actions": {"upload": {"href": f"{self.url}/store/{it['oid']}"}}}
        )

    def mode(self, repo, path):
        stored = self.files.get((repo, path))
        mode = "lfs" if path.endswith(LARGE) else "regular"
        oid = None
        if stored is not None:
            blob = b"blob %d\0" % len(stored) + stored
            oid = (hashlib.sha256(stored) if mode == "lfs" else hashlib.sha1(blob)).hexdigest()
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, repo, branch, lines):
        message, paths = lines[0]["value"]["summary"], []
        for line in lines[1:]:
            value = line["value"]
            content = self.large[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            self.files[repo, value["path"]] = content
            paths.append(value["path"])
        self.commits.append((repo, branch, message, paths))
        oid = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        return {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}


@contextlib.contextmanager
def run_hub():
    """Serve a hub until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = urlsplit(self.path).path
            hub.requests.append((self.command, path, self.headers.get("authorization")))
            fault = next((fault for end, fault in hub.faults.items() if end in path), None)
            status, value = fault or hub.answer(self.command, path, self.headers, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _handle  # noqa: N815 - the server's own names

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
