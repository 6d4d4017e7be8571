"""Shares of languages, and the order that keeps them: even, every block once per epoch, a function of the index."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.stats import chisquare

from train.data.mixing import Mixture, SampleOrder, expected_epochs, format_mixture, temperature_shares

SHARES = {"aa": 0.5, "bb": 0.3, "cc": 0.15, "dd": 0.05}
BLOCKS = {"aa": 7, "bb": 100, "cc": 13, "dd": 1}


def test_temperature_shares_follow_the_formula() -> None:
    sizes = {"en": 10_000_000, "sw": 1_000}
    for alpha in (0.0, 0.3, 0.7, 1.0):
        shares = temperature_shares(sizes, alpha)
        assert shares["en"] / shares["sw"] == pytest.approx(10_000**alpha)
        assert sum(shares.values()) == pytest.approx(1)


def test_weights_and_budgets_are_ratios_and_override_alpha() -> None:
    tokens = {"en": 100, "de": 900}
    assert Mixture(weights={"en": 3, "de": 1}).probabilities(tokens) == {"de": 0.25, "en": 0.75}
    assert Mixture(token_budget={"en": 200, "de": 600}).probabilities(tokens) == {"de": 0.75, "en": 0.25}
    assert expected_epochs({"en": 0.75, "de": 0.25}, tokens, 1000) == {"en": 7.5, "de": pytest.approx(0.2778, abs=1e-4)}
    assert format_mixture({"en": 1.0}, {"en": 50}, 100)[1].split() == ["en", "1.0000", "50", "100", "2.00"]


def test_mixtures_that_do_not_fit_the_data_are_refused() -> None:
    tokens = {"en": 100, "de": 900}
    with pytest.raises(ValueError, match="weights for sw, but the data has de, en"):
        Mixture(weights={"en": 1, "de": 1, "sw": 1}).probabilities(tokens)
    with pytest.raises(ValueError, match="no token_budget for de"):
        Mixture(token_budget={"en": 1}).probabilities(tokens)
    with pytest.raises(ValueError, match="not both"):
        Mixture(weights={"en": 1}, token_budget={"en": 1})
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        Mixture(alpha=1.5)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights of 'en' must be positive"):
            Mixture(weights={"en": bad})


def test_every_stretch_holds_the_languages_in_their_shares() -> None:
    order = SampleOrder(SHARES, BLOCKS, 3, 60_000)
    for start, length in ((0, 100), (12_345, 1000), (50_000, 10_000)):
        counts = np.bincount(order.samples(start, length)[0], minlength=4)
        for language, count in zip(order.languages, counts, strict=True):
            assert abs(count - SHARES[language] * length) <= 8  # independent draws: 20 at 1,000


def test_every_block_is_read_exactly_once_per_epoch_in_a_new_order() -> None:
    order = SampleOrder(SHARES, BLOCKS, 5, 5000)
    languages, blocks = order.samples(0, 5000)
    for position, language in enumerate(order.languages):
        size = BLOCKS[language]
        read = blocks[languages == position]
        epochs = [read[i : i + size].tolist() for i in range(0, len(read) - size + 1, size)]
        assert len(epochs) >= 5
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        if size > 5:
            assert epochs[0] != epochs[1]


def test_a_block_comes_at_every_place_of_an_epoch_equally_often() -> None:
    # 13 places x 2,000 epochs: fair orders fail this once in 10,000 seeds, and the seed is fixed
    _, blocks = SampleOrder({"en": 1.0}, {"en": 13}, 0, 26_000).samples(0, 26_000)
    epochs = blocks.reshape(2000, 13)
    places = np.argsort(epochs, axis=1)  # [epoch, block]
    for block in (0, 6, 12):
        assert chisquare(np.bincount(places[:, block], minlength=13)).pvalue > 1e-4
    pairs = np.bincount((places[:, 1] - places[:, 0]) % 13, minlength=13)[1:]  # a shift would show up here
    assert chisquare(pairs).pvalue > 1e-4


def test_samples_are_a_function_of_seed_and_index_alone() -> None:
    languages, blocks = SampleOrder(SHARES, BLOCKS, 5, 2000).samples(0, 2000)
    for start, count, length in ((0, 1, 1), (1, 7, 8), (700, 512, 1300), (1999, 1, 30_000)):
        again = SampleOrder(SHARES, BLOCKS, 5, length).samples(start, count)
        assert again[0].tolist() == languages[start : start + count].tolist()
        assert again[1].tolist() == blocks[start : start + count].tolist()
    other = SampleOrder(SHARES, BLOCKS, 6, 2000).samples(0, 2000)
    assert other[0].tolist() != languages.tolist()
    assert other[1].tolist() != blocks.tolist()


def test_the_order_is_the_same_in_every_version() -> None:
    """A run is resumed on another machine or NumPy: these numbers may change with `ORDER_VERSION` only."""
    languages, blocks = SampleOrder(SHARES, BLOCKS, 5, 2000).samples(1990, 10)
    assert languages.tolist() == [1, 0, 2, 0, 0, 1, 0, 2, 1, 0]
    assert blocks.tolist() == [77, 0, 3, 6, 4, 81, 3, 12, 56, 5]


def test_an_order_is_small_and_travels_as_its_arguments() -> None:
    order = SampleOrder(SHARES, BLOCKS, 5, 100_000)
    assert sum(array.nbytes for array in order.samples(0, 100_000)) == 500_000
    packed = pickle.dumps(order)
    assert len(packed) < 500
    assert pickle.loads(packed).samples(0, 100_000)[1].tolist() == order.samples(0, 100_000)[1].tolist()


def test_epochs_larger_than_a_draw_and_one_block_alone() -> None:
    size = (1 << 20) + 3
    _, blocks = SampleOrder({"en": 1.0}, {"en": size}, 0, size + 10).samples(0, size + 10)
    assert np.array_equal(np.sort(blocks[:size]), np.arange(size))
    assert SampleOrder({"en": 1.0}, {"en": 1}, 0, 9).samples(0, 9)[1].tolist() == [0] * 9
    with pytest.raises(ValueError, match="no block of text for de"):
        SampleOrder({"en": 0.5, "de": 0.5}, {"en": 4, "de": 0}, 0, 8)
