"""A client for OpenAI-compatible servers: one question, one answer, no answer asked for twice."""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from thresher.analyze.functional.settings import Judge
from thresher.errors import AnalysisError, ConfigError, NetworkError

BUSY = (408, 409, 425, 429)
"""Statuses after which the same request may succeed, besides those of 500 and above."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first further try, doubled before each next one."""


class Server:
    """Asks one model; answers are appended to a file of JSON lines as they come and read from it afterwards."""

    def __init__(self, settings: Judge, cache: Path) -> None:
        assert settings.url is not None, "the caller looked"
        self._settings = settings
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._cache = cache
        self._known = _read_cache(cache)
        self._key = None
        if settings.key_env is not None:
            self._key = os.environ.get(settings.key_env)
            if not self._key:
                raise ConfigError(f"judge.key_env={settings.key_env!r}: no such environment variable; set it to the key")

    def ask(self, prompt: str) -> str:
        """The model's answer, at temperature 0. Raises AnalysisError when the server refuses the request or answers something
        else, NetworkError when it cannot be reached, or is busy, after all tries.
        """
        request = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        body = json.dumps(request, sort_keys=True)
        key = hashlib.sha256(f"{self._url}\n{body}".encode()).hexdigest()
        if key not in self._known:
            answer = _read_answer(self._send(body), self._url)
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")
            self._known[key] = answer
        return self._known[key]

    def _send(self, body: str) -> bytes:
        wait, reason = FIRST_WAIT, ""
        for attempt in range(self._settings.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                return self._send_once(body)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code < 500 and error.code not in BUSY:
                    told = error.read(300).decode(errors="replace")
                    raise AnalysisError(f"{self._url}: refused with status {error.code} ({told}); mend `judge`") from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
        raise NetworkError(
            f"{self._url}: no answer after {self._settings.retries + 1} tries ({reason}); the answers so far are kept"
        )

    def _send_once(self, body: str) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, body.encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=self._settings.timeout) as response:
            return response.read()


def _read_answer(body: bytes, url: str) -> str:
    try:
        found: Any = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise AnalysisError(f"{url}: no chat completion but {body[:200]!r}; give an OpenAI-compatible server") from error
    if not isinstance(found, str):
        raise AnalysisError(f"{url}: an answer that is no text ({found!r}); choose a model that answers in text")
    return found


def _read_cache(path: Path) -> dict[str, str]:
    """Answers by key; a last line that a crash cut off is left out."""
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
            found[one["key"]] = one["answer"]
        except (ValueError, LookupError, TypeError):
            continue
    return found
