"""Held-out loss: the model's own loss, per byte, whatever the batches, beside honest baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.base import Attachment, Row
from analysis.measures.heldout import HeldOutLoss, unigram_losses
from analysis.snapshots import Snapshot


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Nats of one text from the whole model's logits, alone in its batch."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))


def test_the_unigram_model_is_a_distribution_and_knows_its_training_text() -> None:
    training = [[1, 1, 1, 2], [2, 3]]
    probabilities = [math.exp(-unigram_losses(training, [[token]], 10)[0]) for token in range(10)]
    assert sum(probabilities) == pytest.approx(1.0)
    assert probabilities[1] == pytest.approx((3 + 0.3) / 9)
    assert probabilities[7] == pytest.approx(0.3 / 9)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [
        {"language": language, "split": split, "text": f"{word} {i}"}
        for language, word in (("de", "Straße und Häuser"), ("en", "street and houses"))
        for split in ("train", "valid")
        for i in range(6)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return path


Make = Callable[..., Snapshot]


def rows_of(analysis: HeldOutLoss, snapshot: Snapshot) -> dict[tuple[str, str | None], Row]:
    return {(row.metric, row.language): row for row in analysis.measure(snapshot) if isinstance(row, Row)}


def test_rows_are_bits_per_utf8_byte(texts: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Make) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    rows = rows_of(HeldOutLoss(texts=texts), snapshot)
    for language, word in (("de", "Straße und Häuser"), ("en", "street and houses")):
        held_out = [f"{word} {i}" for i in range(6)]
        nats = sum(reference(tiny_xglm, snapshot.tokenizer, text) for text in held_out)  # type: ignore[arg-type]
        row = rows["bits_per_byte", language]
        assert row.value == pytest.approx(nats / math.log(2) / sum(len(text.encode()) for text in held_out), rel=1e-5)
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        assert row.chance is not None
        assert row.chance < math.log2(260), "a unigram model knows more than none"
        assert row.value > row.chance, "a random network knows less than a unigram model"
    mean = np.mean([rows["bits_per_byte", language].value for language in ("de", "en")])
    assert rows["bits_per_byte", None].value == pytest.approx(mean)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_sentence_is_drawn_together_with_its_translations(
    parallel: bool, tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Make
) -> None:
    """Sentences as hard in one language as in the other: a second language adds something only if it is other text."""
    words = ["a", "quick brown fox", "jumps over", "THE LAZY DOG", "zzzz zzzz zzzz zzzz", "0"]
    lines = [
        {"lang": language, "uid": f"{'' if parallel else language}{i}", "split": split, "text": f"{words[i % 6]} {i}"}
        for language in ("de", "en")
        for split in ("train", "valid")
        for i in range(60)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(HeldOutLoss(texts=str(path)), tiny_snapshot(tiny_xglm))
    widths = [row.high - row.low for key, row in rows.items() if key[0] == "bits_per_byte"]  # type: ignore[operator]
    alone, overall = np.mean(widths[:2]), widths[2]
    if parallel:
        assert overall == pytest.approx(alone)
    else:
        assert 0.6 < overall / alone < 0.82  # 1 / sqrt(2)


def test_a_model_that_learned_the_text_beats_the_unigram_model(
    texts: Path, tiny_gpt2: PreTrainedModel, tiny_snapshot: Make
) -> None:
    model = deepcopy(tiny_gpt2).requires_grad_(True)
    snapshot = tiny_snapshot(model)
    batch = snapshot.tokenizer([f"street and houses {i}" for i in range(6)], return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    row = rows_of(HeldOutLoss(texts=texts, languages=["en"]), snapshot)["bits_per_byte", "en"]
    assert row.value < 0.3 * (row.chance or 0.0)


def test_the_same_numbers_come_twice_and_from_any_batch_size(
    texts: Path, tiny_bloom: PreTrainedModel, tiny_snapshot: Make
) -> None:
    snapshot = tiny_snapshot(tiny_bloom)
    before = torch.random.get_rng_state()
    first = list(HeldOutLoss(texts=texts).measure(snapshot))
    assert first == list(HeldOutLoss(texts=texts).measure(snapshot))
    assert torch.equal(before, torch.random.get_rng_state())
    small = list(HeldOutLoss(texts=texts, batch_tokens=1).measure(snapshot))
    assert HeldOutLoss(texts=texts, batch_tokens=1).fingerprint() == HeldOutLoss(texts=texts).fingerprint()
    for one, other in zip(first, small, strict=True):
        if isinstance(one, Attachment) or isinstance(other, Attachment):
            assert one == other
            continue
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_texts_are_continued_by_the_model_and_cost_no_number(
    texts: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Make
) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    before = torch.random.get_rng_state()
    plain, sampling = HeldOutLoss(texts=texts, samples=0), HeldOutLoss(texts=texts, samples=2)
    assert plain.fingerprint() == sampling.fingerprint()
    *rows, attached = sampling.measure(snapshot)
    assert rows == list(plain.measure(snapshot))
    assert isinstance(attached, Attachment)
    samples = attached.table.to_pylist()
    assert [row["language"] for row in samples] == ["de", "de", "en", "en"]
    assert [row["prompt"] + row["reference"] for row in samples[2:]] == ["street and houses 0", "street and houses 1"]
    assert samples[2]["prompt"] == "street a", "eight tokens, here bytes"
    assert all(row["text"] != row["reference"] for row in samples)
    assert torch.equal(before, torch.random.get_rng_state())


def test_broken_weights_are_told_not_averaged(texts: Path, tiny_bloom: PreTrainedModel, tiny_snapshot: Make) -> None:
    model = deepcopy(tiny_bloom)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the weights are broken"):
        list(HeldOutLoss(texts=texts).measure(tiny_snapshot(model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_texts": 0}, "max_texts=0 must be at least 1"),
        ({"samples": -3}, "held_out: samples=-3 must be at least 0"),
        ({"languages": ["xx"]}, "no language 'xx'"),
        ({"splits": ["test"]}, "no split 'test'"),
    ],
)
def test_useless_options_are_refused(
    options: dict, message: str, texts: Path, tiny_bloom: PreTrainedModel, tiny_snapshot: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        list(HeldOutLoss(texts=texts, **options).measure(tiny_snapshot(tiny_bloom)))
