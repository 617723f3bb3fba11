"""A server on loopback with the Hugging Face hub's protocol for models: reading, creating and writing repositories."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

import yaml
from huggingface_hub import constants

TOKEN = "hf_of_oak"  # may write to OWNER
OWNER = "oak"


class Repository:
    def __init__(self, private=False, gated=False):
        self.private, self.gated = private, gated
        self.branches = {"main": {}}  # {branch: {file: content}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, code, message="refused", **headers):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **headers)

    @property
    def knows_token(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name):
        """The repository if it is there and may be read, else None, and the refusal is sent."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.knows_token):
            self.refuse(401, "RepoNotFound", "Repository Not Found")
        elif found.gated and not self.knows_token:
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            return found
        return None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (found := self.repository(match[1])) is None:
                return
            if (files := found.branches.get(match[2])) is None:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            if (content := files.get(match[3])) is None:
                known = {"X_Repo_Commit": commit} if self.server.names_commit_of_missing_files else {}
                self.refuse(404, "EntryNotFound", "Entry not found", **known)
            else:
                large = match[3].endswith(".safetensors")
                etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
                more = {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": len(content)} if large else {}
                self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit, **more)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            if (found := self.repository(match[1])) is not None:
                facts = {"id": match[1], "sha": "0" * 40, "private": found.private, "siblings": [], "tags": []}
                self.answer(200, facts)
        else:
            self.answer(404)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.large[self.path.removeprefix("/lfs/")] = content
        self.answer(200)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            self.server.metadata = yaml.safe_load(content.split("---\n")[1])
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or OWNER}/{asked['name']}"
            if not self.knows_token:
                self.refuse(401, "", "Invalid username or password.")
            elif not name.startswith(f"{OWNER}/"):
                self.refuse(403, "", "You don't have the rights to create a model under this namespace")
            elif name in self.server.repositories:
                self.answer(
                    409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
                )
            else:
                private = asked.get("private") or asked.get("visibility") == "private"
                self.server.repositories[name] = Repository(private=bool(private))
                self.answer(200, {"url": f"{self.server.address}/{name}"})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                each | {"actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path):
            self.write(self.server.repositories[match[1]], match[1], match[2], match[3], body)
        else:
            self.answer(404)

    def write(self, repository, name, what, branch, body):
        if what == "branch":
            if branch in repository.branches:
                self.refuse(409, "", "Reference already exists")
            else:
                repository.branches[branch] = dict(repository.branches["main"])
                self.answer(200, {})
        elif what == "preupload":
            files = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for path in (each["path"] for each in json.loads(body)["files"])
            ]
            self.answer(200, {"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.branches[branch][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.branches[branch][value["path"]] = self.server.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repository.branches[branch][value["path"]]
                else:
                    self.server.messages.append(value["summary"])
            commit = {"commitUrl": f"{self.server.address}/{name}/commit/abc", "commitOid": "abc", "hookOutput": ""}
            self.answer(200, {"success": True, **commit})

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def hub_server(monkeypatch, home):
    """A server that huggingface_hub uses in this process, with its cache in `home`; has `repositories`, by name."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.large, server.messages, server.metadata = {}, {}, [], None
    server.names_commit_of_missing_files = True
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_to(server.address, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS's protocol is public, Xet's storage is not
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def point_to(address, monkeypatch):
    """Makes huggingface_hub use the hub at an address."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
