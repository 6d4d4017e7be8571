"""Folds are disjoint in sentences and balanced; the token baselines against counting by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.extraction.states import merge_samples, sample_tokens
from analysis.probes.folds import (
    cluster_draws,
    count_tokens,
    make_folds,
    shared_tokens,
    token_identity_accuracy,
)
from analysis.texts import Text

LOWER, UPPER = "abcdefghij", "KLMNOPQRST"


def _texts(alphabets: dict[str, str], count: int = 60) -> dict[str, list[Text]]:
    """Random words over an alphabet per language, with the same keys in all of them."""
    generator = np.random.default_rng(0)
    return {
        language: [Text(f"k{number}", "".join(generator.choice(list(alphabet), 24))) for number in range(count)]
        for language, alphabet in alphabets.items()
    }


def test_folds_share_no_key_and_are_balanced(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    texts = _texts({"aa": LOWER, "bb": UPPER})
    texts["bb"] = texts["bb"][:40]  # a smaller language
    samples = [sample_tokens(tiny_snapshot(tiny_xglm), texts, 500, seed=seed) for seed in (0, 1)]
    sample, folds = make_folds(samples, [0, 1], 300, 100)
    for number, fold in enumerate(folds):
        assert not set(sample.key[fold.train]) & set(sample.key[fold.test])
        for mask in (fold.train, fold.test):
            aa, bb = np.bincount(sample.language[mask])
            assert aa == bb > 0
            assert set(np.flatnonzero(mask)) <= set(range(len(sample))[fold.rows])
        own = samples[number]
        assert np.array_equal(sample.token[fold.rows], own.token)
        names = [sample.key_names[key] for key in sample.key[fold.rows]]
        assert names == [own.key_names[key] for key in own.key]
        ids = [sample.encoded.ids[text][place] for text, place in zip(sample.text, sample.position, strict=True)]
        assert np.array_equal(ids, sample.token)
    assert len(sample.encoded) < sum(len(one.encoded) for one in samples), "a text that both draws use is there once"


def test_seeds_draw_tokens_of_their_own(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    texts = _texts({"aa": LOWER, "bb": UPPER}, count=400)
    samples = [sample_tokens(tiny_snapshot(tiny_xglm), texts, 300, seed=seed) for seed in (0, 1, 2)]
    sample, folds = make_folds(samples, [0, 1, 2], 200, 80)
    drawn = [set(zip(sample.text[fold.rows], sample.position[fold.rows], strict=True)) for fold in folds]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(drawn[one] & drawn[other]) < 0.2 * len(drawn[one])


def test_a_key_of_several_texts_does_not_mix_them(tiny_xglm: PreTrainedModel, tiny_snapshot: Callable) -> None:
    texts = {"aa": [Text("k", LOWER), Text("k", UPPER)], "bb": [Text("k", LOWER * 2), Text("k", UPPER * 2)]}
    samples = [sample_tokens(tiny_snapshot(tiny_xglm), texts, 30, seed=seed) for seed in (0, 1)]
    sample, _ = merge_samples(samples)
    ids = [sample.encoded.ids[text][place] for text, place in zip(sample.text, sample.position, strict=True)]
    assert np.array_equal(ids, sample.token)


def test_token_identity_counts_the_training_text_and_ties_in_parts(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    texts = _texts({"aa": LOWER, "bb": UPPER, "cc": LOWER}, count=30)
    snapshot = tiny_snapshot(tiny_xglm)
    sample, (fold,) = make_folds([sample_tokens(snapshot, texts, 200)], [0], 100, 50)
    training = {language: entries * (1 + number) for number, (language, entries) in enumerate(texts.items())}
    training["cc"] = [Text("x", "abc"), Text("y", "abca")]
    counts = count_tokens(snapshot.tokenizer, training, 384)
    assert counts.sum(axis=0).tolist() == [30 * 24, 2 * 30 * 24, 7]
    expected = []
    for token, language in zip(sample.token[fold.test], sample.language[fold.test], strict=True):
        shares = [counts[token, other] / counts[:, other].sum() for other in range(3)]
        best = [other for other in range(3) if shares[other] == max(shares)]
        expected.append((language in best) / len(best))
    assert token_identity_accuracy(counts, sample, fold) == pytest.approx(np.mean(expected))
    assert set(sample.language[shared_tokens(sample)]) == {0, 2}


def test_token_identity_knows_rare_tokens_that_a_small_sample_does_not(
    tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    """Every token belongs to one language, so the text gives them all away; a few sampled tokens would not."""
    lower, upper = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    texts = _texts({"aa": lower, "bb": upper}, count=40)
    snapshot = tiny_snapshot(tiny_xglm)
    sample, (fold,) = make_folds([sample_tokens(snapshot, texts, 60)], [0], 12, 40)
    assert token_identity_accuracy(count_tokens(snapshot.tokenizer, texts, 384), sample, fold) == 1.0
    few = np.zeros((300, 2), dtype=np.int64)
    np.add.at(few, (sample.token[fold.train], sample.language[fold.train]), 1)
    assert token_identity_accuracy(few, sample, fold) < 0.9


def test_interval_widens_when_clusters_vary() -> None:
    totals = np.full((1, 50), 10.0)
    even = np.full((1, 50), 7.0)
    uneven = np.where(np.arange(50) < 35, 10.0, 0.0)[None]
    assert np.allclose(cluster_draws(even, totals), 0.7)
    low, high = np.quantile(cluster_draws(uneven, totals), [0.025, 0.975])
    # Normal approximation: 0.7 +- 1.96 sqrt(0.21 / 50) = [0.573, 0.827].
    assert low == pytest.approx(0.573, abs=0.03)
    assert high == pytest.approx(0.827, abs=0.03)
