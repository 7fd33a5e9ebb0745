"""Google's XML API on loopback: moto's S3, which takes the same requests, and the generations by which Google orders writes.

Google's objects have a number for each content they ever had: every answer tells it, and a write with
`x-goog-if-generation-match` fails with 412 unless it is that of the present content, 0 for none
(https://cloud.google.com/storage/docs/xml-api/reference-headers). Obeys like `s3_server`; lets in who has the token `thresher`.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from s3_server import serve
from werkzeug.serving import BaseWSGIServer, make_server

SIGNED = "AWS4-HMAC-SHA256 Credential=thresher/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""What moto takes for S3's authorization; it does not look at the signature."""

Start = Callable[..., Any]


class Google:
    """A WSGI application in front of moto's."""

    def __init__(self) -> None:
        self._s3: Any = DomainDispatcherApplication(create_backend_app)
        self._generations: dict[str, str] = {}
        self._next = itertools.count(1)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer one request; writes one at a time."""
        if environ.get("HTTP_AUTHORIZATION") != "Bearer thresher":
            return self._refuse(start, "401 Unauthorized", "AuthenticationRequired")
        environ["HTTP_AUTHORIZATION"] = SIGNED
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._s3(environ, self._tell(environ, start))
        with self._lock:
            expected = environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH")
            if expected not in (None, self._generations.get(environ["PATH_INFO"], "0")):
                return self._refuse(start, "412 Precondition Failed", "PreconditionFailed")
            return list(self._s3(environ, self._tell(environ, start)))

    def _tell(self, environ: dict[str, Any], start: Start) -> Start:
        """Takes note of a write that succeeded, and tells the generation."""
        path, method, query = environ["PATH_INFO"], environ["REQUEST_METHOD"], environ["QUERY_STRING"]

        def tell(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if status.startswith("2") and method == "DELETE":
                self._generations.pop(path, None)
            elif status.startswith("2") and method in ("PUT", "POST") and not query.startswith(("uploads=", "partNumber=")):
                self._generations[path] = str(next(self._next))
            known = [("x-goog-generation", self._generations[path])] if path in self._generations else []
            return start(status, [*headers, *known], *rest)

        return tell

    @staticmethod
    def _refuse(start: Start, status: str, code: str) -> Iterable[bytes]:
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code></Error>".encode()]


class Server:
    """A server that answers until it is stopped."""

    def __init__(self, application: Google, port: int) -> None:
        self._server: BaseWSGIServer = make_server("127.0.0.1", port, application, True, request_handler=MotoRequestHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    s3_backends["123456789012"]["aws"].create_bucket(os.environ["BUCKET"], "us-east-1")
    application = Google()
    serve(lambda port: Server(application, port))
