"""A model hub on the loopback: the routes, headers, redirects and ranges that huggingface_hub uses."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `repos` {org/name: {file: bytes}}; large files lie, as on the real hub, on another host.

    Attributes:
        log: (method, path, Range header) of each request. sent: bytes of weight files that went out.
        stall_at: stop in the middle of the next weight file after so many bytes, until `released`.
        drop_at: close the connection once after so many bytes.
        announced: {org/name/file: sha256}, to announce something else than the truth.
    """

    daemon_threads = True

    def __init__(self, repos):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.log, self.sent, self.announced = [], 0, {}
        self.stall_at = self.drop_at = None
        self.stalled, self.released = threading.Event(), threading.Event()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method, ending):
        return [entry for entry in self.log if entry[0] == method and entry[1].endswith(ending)]

    def handle_error(self, request, client_address):
        pass  # clients of these tests are killed on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        hub = self.server
        path = self.path.split("?")[0]
        hub.log.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.info(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[3], body)
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            return self.weights(hub.repos[match[1]][match[2]], body)
        return self.reply(404, {}, b"")

    def info(self, repo, revision):
        if repo not in self.server.repos:
            return self.reply(401, {"X-Error-Code": "RepoNotFound"}, b"{}")
        if revision not in (None, "main", COMMIT):
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        siblings = [{"rfilename": name} for name in self.server.repos[repo]]
        tree = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}, "tags": []}
        return self.reply(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())

    def resolve(self, repo, name, body):
        content = self.server.repos.get(repo, {}).get(name)
        if content is None:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")
        if name.endswith(".json"):
            etag = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            return self.reply(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content, body)
        etag = self.server.announced.get(f"{repo}/{name}", hashlib.sha256(content).hexdigest())
        headers = {
            "Location": f"http://localhost:{self.server.server_port}/cdn/{repo}/{name}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
        }
        return self.reply(302, headers, b"")

    def weights(self, content, body):
        hub = self.server
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.begin(206 if start else 200, headers, len(content) - start)
        stall, hub.stall_at = hub.stall_at, None
        drop, hub.drop_at = hub.drop_at, None
        for at in range(start, len(content) if body else start, 1 << 18):
            if stall is not None and at >= stall:
                hub.stalled.set()
                hub.released.wait(60)
            if drop is not None and at >= drop:
                self.close_connection = True
                return
            self.wfile.write(content[at : at + (1 << 18)])
            hub.sent += len(content[at : at + (1 << 18)])

    def reply(self, status, headers, content, body=True):
        self.begin(status, headers, len(content))
        if body and self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status, headers, length):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextmanager
def serve(repos):
    """A running hub."""
    hub = Hub(repos)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        hub.server_close()
