"""Embedders: fixed values, nearness, a search over real docstrings, and what settings name."""

import csv
import datetime
import email.message
import hashlib
import http.client
import importlib.util
import inspect
import os
import random
import subprocess
import sys
import tarfile
import unicodedata
import urllib.parse
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from outbox.errors import SettingsError, StoreUnavailable
from projectors import embedding
from projectors.embedding import HashingEmbedder, embedder

SAMPLES = [
    "",
    "Parse the HTTP response",
    "parseHTTPResponse(parse_http_response)",
    "the the the cat sat on the mat",
    "Größe – naïve café ﬁn Ⅳ",
    "東京は日本の首都です",
    "emoji 🎉 and \u0301combining",
    "x" * 1000,
    " ".join(f"word{i % 50}" for i in range(2000)),
]
SAMPLES_DIGEST = "7ea545e58ba005c03974235fb4a733b3"
"""BLAKE2b of the samples' vectors. Should it change, every store's vectors differ from the log's on upgrade."""


def digest(vectors):
    return hashlib.blake2b(vectors.astype("<f4").tobytes(), digest_size=16).hexdigest()


def nearness(one, other):
    vectors = HashingEmbedder()([one, other])
    return float(vectors[0] @ vectors[1])


def test_vectors_are_these_very_values_on_every_machine():
    assert digest(HashingEmbedder()(SAMPLES)) == SAMPLES_DIGEST


@pytest.mark.parametrize("seed", ["0", "1"])
def test_vectors_do_not_depend_on_the_process(seed):
    code = "from tests.unit.test_embedding import *; print(digest(HashingEmbedder()(SAMPLES)))"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == SAMPLES_DIGEST


def test_a_vector_does_not_depend_on_its_batch(monkeypatch):
    whole = HashingEmbedder()(SAMPLES)
    assert (whole == np.concatenate([HashingEmbedder()([text]) for text in SAMPLES])).all()
    monkeypatch.setattr(embedding, "BATCH_TEXTS", 2)
    monkeypatch.setattr(embedding, "BATCH_CHARACTERS", 50)
    assert (whole == HashingEmbedder()(SAMPLES)).all()


@pytest.mark.parametrize("dimensions", [8, 256, 384, 1000])
def test_every_row_is_float32_and_of_length_one(dimensions):
    vectors = HashingEmbedder(dimensions)(SAMPLES)
    assert vectors.dtype == np.float32 and vectors.shape == (len(SAMPLES), dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_rows():
    assert HashingEmbedder()([]).shape == (0, 256)


def test_a_text_without_a_word_is_the_first_unit_vector():
    vectors = HashingEmbedder()(["", " \n", "!?…", "a word"])
    assert (vectors[:3] == np.eye(1, 256, dtype=np.float32)).all()
    assert not (vectors[3] == vectors[0]).all()


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("how to open a file", "opening files for reading", "the weather in Paris is mild"),
        ("parse http response", "parseHTTPResponse", "render_html_template"),
        ("load_user_settings", "LoadUserSettings", "delete the old index"),
        ("vector database", "a database of vectors", "graph of customers"),
        ("Bestellung aufgegeben", "Bestellungen werden aufgegeben", "Rechnung bezahlt"),
        ("東京の天気", "東京の天気は晴れ", "大阪城の歴史"),
    ],
)
def test_a_similar_text_is_nearer_than_an_unrelated_one(text, near, far):
    assert nearness(text, near) > nearness(text, far) + 0.05


def test_equal_words_in_another_order_are_near_but_not_the_same():
    assert 0.5 < nearness("dog bites man", "man bites dog") < 0.999


def test_case_and_unicode_form_do_not_matter():
    assert nearness("naïve Café", unicodedata.normalize("NFD", "NAÏVE CAFÉ")) > 0.999


def test_what_stands_past_the_longest_text_read_adds_nothing(monkeypatch):
    monkeypatch.setattr(embedding, "TEXT_MAX", 10)
    assert nearness("one three four", "one three five") > 0.999


def test_the_cache_of_tokens_is_bounded():
    assert embedding._token.cache_info().maxsize == embedding.CACHE_TOKENS


def test_threads_share_an_embedder():
    shared, expected = HashingEmbedder(), HashingEmbedder()(SAMPLES)

    def work(_):
        for _ in range(20):
            assert (shared(SAMPLES) == expected).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def docstrings():
    modules = [csv, datetime, email.message, http.client, tarfile, zipfile, urllib.parse, unicodedata, importlib.util]
    found = {}
    for module in modules:
        for owner in [module, *(c for _, c in inspect.getmembers(module, inspect.isclass))]:
            for _, member in inspect.getmembers(owner, callable):
                text = inspect.getdoc(member) or ""
                if len(text.split()) >= 10:
                    found[text] = None
    return list(found)


def test_some_words_of_a_docstring_find_it_among_hundreds():
    texts = docstrings()
    assert len(texts) > 200
    choose = random.Random(7)
    queries = [" ".join(choose.sample(text.split(), 6)) for text in texts]
    make = HashingEmbedder()
    nearness_of = make(queries) @ make(texts).T
    own = np.diag(nearness_of)[:, None]
    found = ((nearness_of > own).sum(axis=1) < 5).mean()
    assert found >= 0.9


# --- settings


def lengths(texts):
    """An embedder of two dimensions: characters and words."""
    return [[len(text), len(text.split())] for text in texts]


def nothing(texts):
    return []


def not_finite(texts):
    return [[float("nan")] for _ in texts]


class Complete(HashingEmbedder):
    """An embedder class of one's own."""


@pytest.mark.parametrize(
    ("setting", "dimensions", "name"),
    [
        ("hashing", 256, "hashing:256"),
        ("hashing:384", 384, "hashing:384"),
        (f"{__name__}:lengths", 2, f"{__name__}:lengths"),
        (f"{__name__}:Complete", 256, "hashing:256"),
        (lengths, 2, "lengths"),
        (HashingEmbedder(64), 64, "hashing:64"),
    ],
)
def test_a_setting_names_an_embedder(setting, dimensions, name):
    made = embedder(setting)
    assert (made.dimensions, made.name) == (dimensions, name)
    vectors = made(["three words here", "one"])
    assert vectors.shape == (2, dimensions) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_functions_row_of_zeros_becomes_a_unit_vector():
    assert embedder(lengths)([""]).tolist() == [[1.0, 0.0]]
    assert embedder(lengths)([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("", "none of"),
        ("hashed", "none of"),
        ("hashing:0", "from 8"),
        ("hashing:99999", "to 65536"),
        ("hashing:many", "hashing:384"),
        ("no_such_module_at_all:f", "cannot be imported"),
        (f"{__name__}:absent", "cannot be imported"),
        (f"{__name__}:SAMPLES", "not callable"),
        ("sentence-transformers:", "sentence-transformers:<model>"),
        (nothing, "gave an array"),
        (not_finite, "NaN"),
        (str, "gives no rows"),
    ],
)
def test_a_wrong_setting_is_refused_on_one_line(setting, why):
    with pytest.raises(SettingsError) as caught:
        embedder(setting)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[sentence-transformers\]'"):
        embedder("sentence-transformers:all-MiniLM-L6-v2")


def test_a_function_that_changes_its_dimensions_is_refused():
    made = embedder(lambda texts: np.ones((len(texts), len(texts))))
    with pytest.raises(SettingsError, match="gave an array"):
        made(["a", "b"])


class Service:
    """An embedder that asks a service, which is away now and then."""

    dimensions = 3
    name = "service"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, texts):
        if self.errors:
            raise self.errors.pop(0)
        return np.ones((len(texts), 3), dtype=np.float32)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("no route"), KeyError("no route")])
def test_what_an_embedder_raises_is_an_outage_that_names_it_and_may_pass(error):
    made = embedder(Service(error))
    with pytest.raises(StoreUnavailable, match=rf"^embedder service: {type(error).__name__}: .?no route"):
        made(["a"])
    assert made(["a"]).shape == (1, 3)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("no route")])
def test_so_is_what_a_function_raises_from_the_first_call_on(error):
    function = Service(error)
    with pytest.raises(StoreUnavailable, match="no route"):
        embedder(lambda texts: function(texts))
    made = embedder(lambda texts: function(texts))
    function.errors.append(error)
    with pytest.raises(StoreUnavailable, match="no route"):
        made(["a"])
    assert made(["a"]).shape == (1, 3)


def test_an_embedder_that_says_that_it_is_wrong_is_named():
    with pytest.raises(SettingsError, match=r"^embedder service: ValueError: no such model$"):
        embedder(Service(ValueError("no such model")))(["a"])
