"""Buckets that answer as Amazon's and Google's do, processes that are launched together, Python with its imports done."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import plain_checks  # noqa: F401 - before what it checks
import pytest

from thresher.data.store.objects import RETRY_SECONDS, Objects

BUCKET = "activations"
PATIENCE = "60"
"""Seconds for which a request to a test's server is repeated: moto answers 500 where two requests meet, late on a busy machine.
Tests in which a server stays away set less."""
FORKS = "THRESHER_TEST_FORKS"
"""The variable with the folder in which the interpreters of `python` lie."""
SERVER = pytest.StashKey["subprocess.Popen[str]"]()
hypothesis.settings.register_profile(
    "reproducible",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("reproducible")  # `--hypothesis-profile=default` looks for new examples
SHIM = """#!{python} -IS
import sys
sys.argv[1:1] = {arguments!r}
exec(open({client!r}).read())
"""


def has_process_descriptors() -> bool:
    """Whether Python and the kernel have what `fork_server.py` waits with; a sandbox may refuse it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def pytest_configure(config: pytest.Config) -> None:
    """Start the server behind `python`, one for all workers; it imports nothing before it is asked for something.

    Shells start what runs in the background with Ctrl-C ignored: tests that press it need it heard. No repository is found
    by what is tested, which would look through it with every run, and tell runs apart when somebody commits meanwhile.
    """
    os.environ["GIT_DIR"] = os.devnull
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or not has_process_descriptors():
        return
    folder, here = Path(tempfile.mkdtemp(prefix="forks-")), Path(__file__).parent / "tools"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    (folder / "environment.json").write_text(json.dumps(environment))
    thresher = str(Path(sys.executable).with_name("thresher"))
    for name, program in {"python": [], "thresher": [thresher]}.items():
        arguments = [str(folder), sys.executable, str(folder / "python"), *program]
        path = folder / name
        path.write_text(SHIM.format(python=sys.executable, arguments=arguments, client=str(here / "fork_client.py")))
        path.chmod(0o700)
    command = [sys.executable, str(here / "fork_server.py"), str(folder / "socket")]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    config.stash[SERVER] = server
    os.environ[FORKS] = str(folder)


def pytest_collection_finish() -> None:
    """Let no garbage collection look through what was imported: benchmarks ask for many, and each would take a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let the server end."""
    if server := config.stash.get(SERVER, None):
        server.communicate()
        shutil.rmtree(os.environ.pop(FORKS))


@pytest.fixture(scope="session")
def python() -> Path:
    """What to start instead of `sys.executable`: the same, forked from a process with all imports done (`fork_server.py`).

    Only for programs that do not depend on how Python starts. Beside it lies `thresher`.
    """
    return Path(os.environ[FORKS], "python") if FORKS in os.environ else Path(sys.executable)


class Bucket:
    """A server with one bucket."""

    def __init__(self, process: "subprocess.Popen[str]", scheme: str) -> None:
        self._process, self._scheme = process, scheme
        self.url = f"http://127.0.0.1:{self._answer()}"
        if scheme != "s3":
            return
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")):
            pass

    def address(self, name: str) -> str:
        """A place in the bucket."""
        return f"{self._scheme}://{BUCKET}/{name}"

    def objects(self, name: str) -> dict[str, bytes]:
        """Everything that lies at a place."""
        found = Objects(self.address(name))
        return {path: found.get(path)[0] for path, _ in found.list("")}

    def down(self) -> None:
        """Answer nobody any more."""
        self._tell("down")

    def up(self) -> None:
        """Answer again."""
        self._tell("up")

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._answer() == word

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def serve(program: str, scheme: str, **environment: str) -> Iterator[Bucket]:
    """A server while the block runs. Parts of uploads may be small."""
    settings = {"S3_UPLOAD_PART_MIN_SIZE": "1", "AWS_EC2_METADATA_DISABLED": "true", "BUCKET": BUCKET}
    command = [sys.executable, str(Path(__file__).with_name(program))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | settings | environment, text=True, **pipes) as process:
        yield Bucket(process, scheme)
        process.kill()


@pytest.fixture(scope="session")
def s3() -> Iterator[Bucket]:
    """A server for all tests, and the settings that lead to it."""
    with serve("s3_server.py", "s3") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "thresher",
            "AWS_SECRET_ACCESS_KEY": "thresher",
            "AWS_REGION": "us-east-1",
            RETRY_SECONDS: PATIENCE,
        }.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def place(s3: Bucket, request: pytest.FixtureRequest) -> str:
    """An empty place in the bucket, of the test's own."""
    return s3.address(request.node.name.replace("/", "-").replace("[", "-").replace("]", ""))


@pytest.fixture(scope="session")
def closed_s3(s3: Bucket) -> Iterator[Bucket]:
    """A server that lets nobody in."""
    with serve("s3_server.py", "s3", INITIAL_NO_AUTH_ACTION_COUNT="1") as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[Bucket]:
    """A bucket of Google's for all tests, and the settings that lead to it."""
    with serve("gcs_server.py", "gs") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {"GOOGLE_BASE_URL": server.url, "GOOGLE_BEARER_TOKEN": "thresher", RETRY_SECONDS: PATIENCE}.items():
            patch.setenv(name, value)
        yield server


class Launched(NamedTuple):
    """How a launch ended."""

    codes: list[int]
    """Exit codes by rank; negative: the signal that ended it."""
    logs: list[str]


@pytest.fixture(scope="session")
def open_launcher(
    python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], contextlib.AbstractContextManager[Callable[..., Launched]]]:
    """Gives, for a Python file, what calls a function of it in n processes of one launch and waits for them."""

    @contextlib.contextmanager
    def open_one(file: Path) -> Iterator[Callable[..., Launched]]:
        folder = tmp_path_factory.mktemp("launch")
        command = [str(python), str(Path(__file__).with_name("launcher.py")), str(file)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"

            def launch(n: int, call: str, *arguments: object) -> Launched:
                environment = os.environ | {"OMP_NUM_THREADS": "1", "LAUNCH_FOLDER": str(folder)}
                asked = {"n": n, "call": call, "arguments": arguments, "log": str(folder), "environment": environment}
                server.stdin.write(json.dumps(asked) + "\n")
                server.stdin.flush()
                codes = json.loads(server.stdout.readline())
                return Launched(codes, [(folder / f"{rank}.log").read_text() for rank in range(n)])

            yield launch
            server.stdin.close()

    return open_one
