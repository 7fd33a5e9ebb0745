"""Push and pull against a server that speaks the hub's protocol as far as the client asks: what comes back is what went in."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from thresher.train.arch import TopK, build
from thresher.train.checkpoint import TrainedSAE, load_sae, save_sae
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer

REPO, COMMIT, TOKEN = "someone/sae", "a" * 40, "hf_of_a_test"


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, in memory."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self.answer(json.dumps({"errors": [], "warnings": []}).encode())
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(b"{}", 401)
        if path == "/api/repos/create":
            return self.answer(json.dumps({"url": f"{self.server.address}/{REPO}"}).encode())
        if path == f"/api/models/{REPO}/preupload/main":
            asked = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in asked]
            return self.answer(json.dumps({"files": modes}).encode())
        if path == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/{REPO}/commit/{COMMIT}"
            return self.answer(json.dumps({"commitUrl": url, "commitOid": COMMIT}).encode())
        return self.answer(b"{}", 404)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        files = self.server.files
        if files and path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "b" * 40} for name, data in files.items()]
            return self.answer(json.dumps(tree).encode())
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path[len(prefix) :] in files:
            return self.answer(files[path[len(prefix) :]])
        return self.answer(b"{}", 404)

    do_HEAD = do_GET  # noqa: N815 - the server looks for this name

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class HubServer(http.server.ThreadingHTTPServer):
    files: dict[str, bytes]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(("127.0.0.1", 0), Hub) as server:
        server.files = {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


RUNNER = """
import json, os, sys
from typer.testing import CliRunner
from thresher.cli import app
for line in sys.stdin:
    token, *arguments = json.loads(line)
    os.environ["HF_TOKEN"] = token
    done = CliRunner().invoke(app, ["sae", *arguments])
    print(json.dumps([done.exit_code, done.output]))
"""
"""The hub's client reads its address when it is imported, so the commands run in a process of their own."""


def call(hub: HubServer, home: Path, calls: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and output of `thresher sae ...`, one after the other; each call starts with the token to use."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "THRESHER_HUB")}
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    lines = "".join(json.dumps(each) + "\n" for each in calls)
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=lines, env=kept | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_is_pulled_is_what_was_pushed_and_without_a_token_or_a_repository_the_refusal_says_so(
    hub: HubServer, tmp_path: Path
) -> None:
    settings = TopK(d_sae=24, k=3)
    config = TrainConfig(store=Path("s"), hook_points=("text.3",), sae=settings, out=Path("o"))
    normalizer = Normalizer(False, torch.ones(1, 8), torch.ones(1))
    identity = {"model": {"name": "planted"}}
    trained = TrainedSAE(build(settings, 8, 0), normalizer, config, "f" * 64, identity, {"r2": 0.5}, 3, True)
    save_sae(tmp_path / "sae", trained)

    sae, pulled = str(tmp_path / "sae"), str(tmp_path / "pulled")
    calls = [["hf_of_nobody", "push", sae, REPO], [TOKEN, "pull", REPO, pulled], [TOKEN, "push", sae, REPO]]
    (refused, missing, pushed, back) = call(hub, tmp_path / "home", [*calls, calls[1]])
    assert refused[0] == 2
    assert "log in with" in refused[1]
    assert missing[0] == 2
    assert "the hub refuses it" in missing[1]
    assert pushed[0] == 0, pushed[1]
    assert f"{hub.address}/{REPO}" in pushed[1].splitlines()
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    assert b"| all | 0.5 |" in hub.files["README.md"]
    assert back[0] == 0, back[1]
    x = torch.randn(5, 8)
    found = load_sae(pulled).encode(x, "text.3")
    assert all(torch.equal(a, b) for a, b in zip(found, trained.encode(x, "text.3"), strict=True))
