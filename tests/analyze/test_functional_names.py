"""The laws of names: from a vocabulary, and from a language model behind a server of the test's own."""

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from thresher.analyze.functional.held import Half, Held
from thresher.analyze.functional.judge import choose_captions, judge_features
from thresher.analyze.functional.names import name_all
from thresher.analyze.functional.settings import Judge, Naming, Vocabulary
from thresher.analyze.functional.words import Words, read_vocabulary, read_words
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import open_panels
from thresher.data.store import open_store
from thresher.errors import AnalysisError, ConfigError, NetworkError

N = 100


def hold(atoms: np.ndarray, gap: np.ndarray, seed: int = 0) -> Held:
    """100 pairs; each feature fires on a tenth of the images and on their captions, the last one on nothing."""
    generator = np.random.default_rng(seed)
    codes = (generator.random((N, len(atoms))) < 0.1) * generator.uniform(0.5, 1.5, (N, len(atoms)))
    codes[:, -1] = 0
    every, weights = np.arange(N), Resample(20, seed).weights(0, N)
    halves = [
        Half(sign * gap + codes @ atoms, csr_array(codes), atoms, sign * gap, every, every, weights) for sign in (0.5, -0.5)
    ]
    return Held(halves[0], halves[1], seed)


def test_atoms_that_are_embeddings_of_words_are_named_by_these_words() -> None:
    data = os.environ.get("THRESHER_DATA")
    if not data:
        pytest.skip("THRESHER_DATA is not set: it names the folder with clip-embeddings/")
    folder = Path(data) / "clip-embeddings"
    words = read_vocabulary(Vocabulary(embeddings=folder / "text_vocab.npy", words=folder / "text_vocab.csv"), 512)
    assert words.words[2] == "a airplane"
    unit = normalize_rows(words.vectors)
    chosen = np.random.default_rng(0).choice(len(unit), 40, replace=False)
    atoms = normalize_rows(unit[chosen] - unit.mean(axis=0))
    named = name_all(hold(atoms, unit.mean(axis=0)), words, Naming(), np.full(40, "shared"))
    # The encoder reads `Watch` as `watch`: both are there, with one embedding.
    expected = [words.words[index].lower() for index in chosen]
    assert [name.lower() for name in named.columns["name_atom"]] == expected
    for side in ("image", "text"):
        assert (
            np.mean([(a or "").lower() == b for a, b in zip(named.columns[f"name_{side}"][:-1], expected, strict=False)]) > 0.9
        )
        assert named.columns[f"name_{side}"][-1] is None
    summary = named.summary["shared"]
    assert summary["agreement"].value > 0.9
    assert abs(summary["agreement_by_chance"].value) < 0.3
    strict = name_all(hold(atoms, unit.mean(axis=0)), words, Naming(least_z=1000.0), np.full(40, "shared"))
    assert set(strict.columns["name_atom"]) == {None}
    assert min(strict.columns["name_atom_z"]) > 3


def test_a_direction_that_is_no_word_has_no_name() -> None:
    generator = np.random.default_rng(0)
    words = Words(tuple(f"w{index}" for index in range(50)), np.concatenate([np.eye(50), np.zeros((50, 50))], axis=1))
    atoms = np.concatenate([np.zeros((20, 50)), generator.normal(size=(20, 50))], axis=1)
    named = name_all(hold(normalize_rows(atoms), np.zeros(100)), words, Naming(), np.full(20, "shared"))
    assert set(named.columns["name_atom"]) == {None}


def test_the_gap_between_the_modalities_names_nothing() -> None:
    vectors = normalize_rows(np.eye(40) + 0.02)
    words = Words(tuple(f"w{index}" for index in range(40)), vectors)
    gap = 3 * np.eye(40)[7]
    atoms = normalize_rows(np.eye(40)[:6] + 2 * np.eye(40)[7])
    named = name_all(hold(atoms, gap), words, Naming(), np.full(6, "shared"))
    assert named.columns["name_atom"] == [f"w{index}" for index in range(6)]


def test_a_vocabulary_is_a_store_or_files_of_the_encoders_own_width(make_store, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 70, captions=1, modalities=("text",), is_paired=False)
    found = read_vocabulary(Vocabulary(store=str(store)), 48)
    opened = open_store(store)
    assert list(found.words) == opened.items("text")["text"].to_pylist()
    np.testing.assert_allclose(found.vectors, opened.read("text.embed", 0, 70).double().numpy())
    with pytest.raises(AnalysisError, match=r"embeddings of width 48, the dictionary works at width 512; .* with the encoder"):
        read_vocabulary(Vocabulary(store=str(store)), 512)
    with pytest.raises(AnalysisError, match=r"no single hook point of texts .*'text.pooled' asked for.*it has text.embed"):
        read_vocabulary(Vocabulary(store=str(store), hook_point="text.pooled"), 48)
    (tmp_path / "words.txt").write_text("one\n\ntwo\n")
    (tmp_path / "words.csv").write_text("id,word\n1,one\n2,two\n")
    assert read_words(tmp_path / "words.txt") == read_words(tmp_path / "words.csv") == ["one", "two"]
    np.save(tmp_path / "three.npy", np.ones((3, 4)))
    with pytest.raises(AnalysisError, match="3 embeddings for the 2 words"):
        read_vocabulary(Vocabulary(embeddings=tmp_path / "three.npy", words=tmp_path / "words.txt"), 4)
    with pytest.raises(AnalysisError, match=r"cannot be read as an \.npy array"):
        read_vocabulary(Vocabulary(embeddings=tmp_path / "words.txt", words=tmp_path / "words.txt"), 4)
    for wrong in ({}, {"store": "a", "embeddings": Path("b"), "words": Path("c")}, {"embeddings": Path("b")}):
        with pytest.raises(ConfigError, match="vocabulary"):
            Vocabulary(**wrong)


class Stub:
    """A server that names by the word that the first captions have and the others lack, and looks for that word."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.statuses: list[int] = []
        """What the next requests are answered with, before any success."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append((self.headers.get("Authorization", ""), body))
                status = stub.statuses.pop(0) if stub.statuses else 200
                answer = answer_prompt(body["messages"][0]["content"])
                told = json.dumps({"choices": [{"message": {"content": answer}}]}).encode() if status == 200 else b"no"
                self.send_response(status)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def answer_prompt(prompt: str) -> str:
    if "Which of these" in prompt:
        name = prompt.splitlines()[0].removeprefix("Concept: ")
        numbers = re.findall(rf"^(\d+)\. .*\b{name}\b", prompt, flags=re.MULTILINE)
        return ", ".join(numbers) or "none"
    first, second = prompt.split("do not have it")
    captions = [set(line.split()) for line in re.findall(r"^- (.*)$", first, flags=re.MULTILINE)]
    words = set.intersection(*captions) - set(second.split())
    return f'"{min(words)}"' if words else "nothing"


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def captioned(make_store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Held]:
    """A store of captions, and features that fire where a word is in the caption; one fires at random."""
    store = open_store(make_store(tmp_path_factory.mktemp("judge") / "store", 200, captions=1))
    panel = open_panels(store, ["text.embed"], 0.9, 0, None)["text"]
    texts = store.items("text")["text"].take(panel.items).to_pylist()
    generator = np.random.default_rng(0)
    fires = [[word in text.split() for text in texts] for word in ("a", "two", "circle")]
    common = max({word for text in texts for word in text.split()}, key=lambda w: -abs(sum(w in t.split() for t in texts) - 60))
    columns = [*fires, [common in text.split() for text in texts], (generator.random(len(texts)) < 0.4).tolist()]
    codes = csr_array(np.array(columns, dtype=float).T * generator.uniform(0.5, 1, (len(texts), 5)))
    every = np.arange(len(texts))
    half = Half(np.zeros((len(texts), 1)), codes, np.zeros((5, 1)), np.zeros(1), every, every, np.ones((1, len(texts))))
    return store, panel, Held(half, half, 0)


def ask(
    captioned: tuple[Any, Any, Held], stub: Stub, cache: Path, **fields: Any
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    store, panel, held = captioned
    settings = Judge(url=stub.url, model="m", **fields)
    return judge_features(held, store, panel, np.array([0, 0, 0, 2.0, 1.0]), settings, cache)


def test_a_judge_names_a_word_and_is_right_on_unseen_captions_and_a_rerun_asks_nothing(
    captioned: tuple[Any, Any, Held], stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    stub.statuses = [503]
    columns, summary = ask(captioned, stub, tmp_path / "cache.jsonl", key_env="TEST_JUDGE_KEY")
    assert columns["judge_score"][:3] == [None] * 3
    assert columns["judge_score"][3] == 1
    assert columns["judge_score"][4] < 1
    assert summary["score"].n == 2
    assert {key for key, _ in stub.requests} == {"Bearer secret"}
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()
    n_requests = len(stub.requests)
    assert n_requests == 5
    assert ask(captioned, stub, tmp_path / "cache.jsonl", key_env="TEST_JUDGE_KEY")[0] == columns
    assert len(stub.requests) == n_requests


def test_a_judge_that_refuses_or_does_not_answer_is_named(captioned: tuple[Any, Any, Held], stub: Stub, tmp_path: Path) -> None:
    stub.statuses = [401]
    with pytest.raises(AnalysisError, match=r"refused with status 401 \(no\); mend `judge`"):
        ask(captioned, stub, tmp_path / "cache.jsonl")
    stub.statuses = [500]
    with pytest.raises(NetworkError, match=r"no answer after 1 tries \(status 500\)"):
        ask(captioned, stub, tmp_path / "cache.jsonl", retries=0)
    with pytest.raises(ConfigError, match="no such environment variable"):
        ask(captioned, stub, tmp_path / "cache.jsonl", key_env="NOT_SET_ANYWHERE")
    assert not (tmp_path / "cache.jsonl").exists()


def test_tested_captions_are_of_other_images_than_the_shown_ones(captioned: tuple[Any, Any, Held]) -> None:
    _, panel, held = captioned
    captions = [f"caption {index}" for index in range(len(panel.items))]
    shown = choose_captions(held, captions, 3, Judge())
    assert shown is not None
    every = [*shown.examples, *shown.contrast, *shown.tested]
    assert len(set(every)) == len(every) == 8 + 8 + 10
    fires = held.text.codes[:, [3]].toarray()[:, 0] > 0
    assert [bool(fires[int(text.split()[1])]) for text in shown.tested] == shown.has.tolist()
    assert shown.has.sum() == 5
    assert choose_captions(held, captions, 0, Judge(examples=200)) is None
