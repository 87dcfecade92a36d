"""Reciprocal rank fusion: one list out of several stores' answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projectors.query.protocol import Hit
from projectors.query.search import RRF_K, fuse


def answer(store: str, *keys: str) -> list[Hit]:
    return [Hit(key, 1.0 - n / 100, store) for n, key in enumerate(keys)]


def order(*answers: list[Hit]) -> list[str]:
    return [f.hit.key for f in fuse(answers)]


def test_nothing_fused_is_nothing() -> None:
    assert fuse([]) == fuse([[], []]) == []


def test_one_answer_keeps_its_order() -> None:
    assert order(answer("chroma", "c", "a", "b")) == ["c", "a", "b"]


def test_what_two_stores_find_beats_what_one_finds_first() -> None:
    assert order(answer("chroma", "a", "b"), answer("elastic", "c", "b"))[0] == "b"


def test_scores_are_the_sums_of_the_papers_formula() -> None:
    (first, second) = fuse([answer("chroma", "a", "b"), answer("elastic", "b")])
    assert (first.hit.key, second.hit.key) == ("b", "a")
    assert first.hit.score == pytest.approx(1 / (RRF_K + 2) + 1 / (RRF_K + 1))
    assert second.hit.score == pytest.approx(1 / (RRF_K + 1))


def test_the_scores_of_the_stores_themselves_do_not_matter() -> None:
    loud = [Hit("a", 1e9, "elastic"), Hit("b", 1e8, "elastic")]
    assert order(loud, answer("chroma", "b", "a", "c")) == order(
        answer("elastic", "a", "b"), answer("chroma", "b", "a", "c")
    )


def test_ties_are_in_the_order_of_keys() -> None:
    assert order(answer("chroma", "b"), answer("elastic", "a")) == ["a", "b"]


def test_each_hit_tells_its_rank_in_each_store() -> None:
    found = {f.hit.key: f for f in fuse([answer("chroma", "a", "b"), answer("elastic", "b", "c")])}
    assert found["b"].ranks == {"chroma": 2, "elastic": 1}
    assert (found["a"].ranks, found["b"].hit.store) == ({"chroma": 1}, "chroma+elastic")


def test_a_hit_with_a_snippet_is_shown_rather_than_one_without() -> None:
    plain, telling = Hit("a", 1.0, "chroma"), Hit("a", 1.0, "elastic", snippet="the words")
    assert [f.hit.snippet for f in (*fuse([[plain], [telling]]), *fuse([[telling], [plain]]))] == ["the words"] * 2


KEYS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(lists=st.lists(KEYS, max_size=4))
def test_every_key_comes_once_best_first_whatever_the_order_of_the_answers(lists: list[list[str]]) -> None:
    answers = [answer(f"store{n}", *keys) for n, keys in enumerate(lists)]
    fused = fuse(answers)
    assert sorted(f.hit.key for f in fused) == sorted({key for keys in lists for key in keys})
    assert [f.hit.score for f in fused] == sorted((f.hit.score for f in fused), reverse=True)
    assert [f.hit.key for f in fuse(answers[::-1])] == [f.hit.key for f in fused]
