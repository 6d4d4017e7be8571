"""Causal transfer on a network whose concept neurons are known: shared by the languages, or each language's own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.concepts.dataset import load_concepts
from analysis.concepts.lexicon import read_lexicon
from analysis.experts.table import find_experts
from analysis.extraction.losses import token_losses
from analysis.extraction.options import Extraction
from analysis.measures import build_analyses
from analysis.measures.causal_transfer import CausalTransfer, read_words
from analysis.snapshots import Snapshot
from analysis.steering.judging import ConceptLexicon

CUES = {"water": {"aa": "#", "bb": "@"}, "fire": {"aa": "$", "bb": "%"}, "wood": {"aa": "&", "bb": "+"}}
WORDS = {"water": "vvv", "fire": "fff", "wood": "ooo"}
"""The same word in both languages, always behind the cue."""


@pytest.fixture
def concept_file(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    lines = []
    for language, alphabet in (("aa", "abc"), ("bb", "klm")):
        for number in range(90):
            carried = (*CUES, None, None)[number % 5]
            filler = ["".join(generator.choice(list(alphabet), 4)) for _ in range(3)]
            if carried is not None:
                filler.insert(1, CUES[carried][language] + WORDS[carried])
            shared = {"language": language, "uid": f"u{number}", "text": " ".join(filler)}
            lines += [{"concept": concept, "label": int(concept == carried), **shared} for concept in CUES]
    path = tmp_path / "concepts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    lexicon = {concept: {"aa": [word], "bb": [word]} for concept, word in WORDS.items()}
    Path(f"{path}.lexicon.json").write_text(json.dumps({"lexicon": lexicon}))
    return str(path)


def plant(model: PreTrainedModel, *, shared: bool) -> PreTrainedModel:
    """Unit 2 c (of bb 2 c + 1 if not shared) of the first MLP fires on the cue of concept c and writes its word."""
    planted = copy.deepcopy(model)
    ids = {character: 4 + index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    block = planted.model.layers[0]
    with torch.no_grad():
        planted.model.embed_tokens.weight[:, :6] = 0.0
        planted.model.embed_tokens.weight[:, 20:23] = 0.0
        for layer in planted.model.layers:
            layer.self_attn.o_proj.weight.zero_()
        planted.model.layers[1].mlp.down_proj.weight.zero_()
        planted.lm_head.weight.mul_(0.05)
        for number, (concept, cues) in enumerate(CUES.items()):
            for side, cue in enumerate(cues.values()):
                unit = 2 * number + (0 if shared else side)
                coordinate = 2 * number + side
                planted.model.embed_tokens.weight[ids[cue]] = 0.0
                planted.model.embed_tokens.weight[ids[cue], coordinate] = 1.0
                if not shared or side == 0:
                    block.mlp.gate_proj.weight[unit] = block.mlp.up_proj.weight[unit] = 0.0
                    block.mlp.down_proj.weight[:, unit] = 0.0
                block.mlp.gate_proj.weight[unit, coordinate] = block.mlp.up_proj.weight[unit, coordinate] = 2.0
                block.mlp.down_proj.weight[20 + number, unit] = 1.0
            planted.lm_head.weight[ids[WORDS[concept][0]], 20 + number] = 3.0
    return planted


def analysis(path: str, **options: object) -> CausalTransfer:
    return CausalTransfer(concepts=path, **({"k": 1, "site_set": ["mlp.act"], "min_positives": 5} | options))  # type: ignore[arg-type]


def one(rows: list[Row], metric: str, **where: object) -> Row:
    where = {"language": None, "other_language": None, "concept": None, "condition": None} | where
    (row,) = [row for row in rows if row.metric == metric and all(getattr(row, k) == v for k, v in where.items())]
    return row


def test_shared_units_carry_the_word_across_and_own_units_do_not(
    concept_file: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    rows = {
        shared: list(analysis(concept_file).measure(tiny_snapshot(plant(tiny_llama, shared=shared))))
        for shared in (True, False)
    }
    across = {"language": "aa", "other_language": "bb"}
    for metric in ("causal_transfer", "causal_transfer_random"):
        carried = one(rows[True], metric)
        assert carried.value > 0.3
        assert carried.low > 0
        assert one(rows[True], metric, **across).value == pytest.approx(one(rows[True], metric).value, rel=0.5)
        # A random unit may be one that writes something, so that control is the noisier one.
        assert abs(one(rows[False], metric).value) < (0.02 if metric == "causal_transfer" else 0.3)
        assert one(rows[False], metric, language="aa", other_language="aa").value > 0.3
    for found in rows.values():
        assert one(found, "causal_own").value > 0.3
    for concept in CUES:
        assert one(rows[True], "causal_transfer", concept=concept).value > 0.3
    raised = one(rows[True], "ablation", condition="experts", **across).value
    kept = one(rows[True], "ablation", condition="mismatched", **across).value
    assert one(rows[True], "causal_transfer", **across).value == pytest.approx(raised - kept, abs=1e-6)
    assert abs(kept) < 0.05


def test_pairs_are_told_apart_by_stratum_and_clones_stay_out_of_the_mean(
    concept_file: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    """Rises that say which pair they are of: same script 1, with the clone 10, the clone's own language 100."""
    measure = analysis(concept_file)
    snapshot = tiny_snapshot(tiny_llama)
    table = find_experts(snapshot, load_concepts(concept_file, min_positives=5), site_set=["mlp.act"], k=1)
    table = replace(table, languages=("aa", "bb", "cc"), concepts=("fire", "water"), clusters=np.arange(2))
    rises = np.zeros((3, 3, 3, 2))
    rises[0] = np.array([[5.0, 1.0, 100.0], [1.0, 7.0, 10.0], [100.0, 10.0, 1000.0]])[..., None]
    strata = {("aa", "bb"): "same_script", ("aa", "cc"): "clone", ("bb", "cc"): "with_clone"}
    rows = list(measure._rows(table, rises, strata, {"cc"}))
    for condition, value in ((None, 1.0), ("same_script", 1.0), ("clone", 100.0), ("with_clone", 10.0)):
        assert one(rows, "causal_transfer", condition=condition).value == value
        assert one(rows, "causal_transfer", condition=condition, concept="water").value == value
    assert one(rows, "causal_own").value == 6.0
    alone = list(measure._rows(table, rises, strata, {"bb", "cc"}))
    assert one(alone, "causal_transfer").value == 37.0, "without natural pairs the mean is over all there are"


def test_losses_are_those_of_the_words_in_the_whole_model(
    concept_file: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    snapshot = tiny_snapshot(tiny_llama)
    concepts = load_concepts(concept_file, min_positives=5)
    words = ConceptLexicon(read_lexicon(f"{concept_file}.lexicon.json"))
    texts = read_words(snapshot, concepts, "fire", words, 4, Extraction())
    assert np.bincount(texts.owner).tolist() == [4, 4]
    expected = np.zeros(2)
    for row, wanted, owner in zip(texts.encoded.ids, texts.wanted, texts.owner, strict=True):
        assert snapshot.tokenizer.decode([t for t, flag in zip(row, wanted, strict=True) if flag]) == "fff"
        ids = torch.tensor([row])
        with torch.no_grad():
            nats = F.cross_entropy(tiny_llama(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        expected[owner] += float(nats[torch.from_numpy(wanted[1:])].mean()) / 4
    np.testing.assert_allclose(texts.losses(snapshot, {}, Extraction(), ""), expected, rtol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("passes", [0, 1])
def test_a_loss_that_is_not_finite_is_no_concept_without_words(
    broken: float,
    passes: int,
    concept_file: str,
    tiny_llama: PreTrainedModel,
    tiny_snapshot: Callable[..., Snapshot],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first loss of the plain network, then of the first ablation: a mean without that language came out."""
    calls = 0

    def overflowing(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        losses, rows = token_losses(*given)  # type: ignore[arg-type]
        calls += 1
        return (losses.index_fill(0, torch.tensor([0]), broken) if calls > passes else losses), rows

    monkeypatch.setattr("analysis.measures.causal_transfer.token_losses", overflowing)
    condition = ("without an ablation", "with 'experts' of 'aa' ablated")[passes]
    with pytest.raises(ValueError, match=f"words of 'water' is not finite {condition}"):
        list(analysis(concept_file).measure(tiny_snapshot(tiny_llama)))


def test_the_model_is_left_as_it_was_and_rows_are_reproducible(
    concept_file: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    before = {name: parameter.clone() for name, parameter in tiny_llama.named_parameters()}
    rows = list(analysis(concept_file, site_set="linear", k=5).measure(tiny_snapshot(tiny_llama)))
    assert rows == list(analysis(concept_file, site_set="linear", k=5).measure(tiny_snapshot(tiny_llama)))
    assert all(torch.equal(before[name], parameter) for name, parameter in tiny_llama.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"share": 1.5}, "share=1.5"),
        ({"mismatched": 0}, "mismatched=0"),
        ({"languages": ["aa"]}, "compares with nothing"),
        ({"only_concepts": ["water"]}, "two concepts"),
        ({"only_concepts": ["water", "water"]}, "'water' is listed twice"),
        ({"lexicon": "nowhere.json"}, "nowhere.json: no such lexicon"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object], message: str, concept_file: str, tiny_llama: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(analysis(concept_file, **options).measure(tiny_snapshot(tiny_llama)))


def test_the_lexicon_counts_in_the_fingerprint(concept_file: str) -> None:
    (built,) = build_analyses([{"class_path": "CausalTransfer", "init_args": {"concepts": concept_file}}])
    before = built.fingerprint()
    Path(f"{concept_file}.lexicon.json").write_text(json.dumps({"lexicon": {"water": {"aa": ["x"]}}}))
    assert built.fingerprint() != before
