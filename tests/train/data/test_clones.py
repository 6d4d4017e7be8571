"""A cloned language shares no token and no document with its original, and all of its statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from babelscope.records import Clone
from train.config.compatibility import check_data
from train.data.clones import dealt_to, make_clones
from train.data.documents import Document
from train.data.sources import LocalText
from train.data.streams import PreparedText
from train.data.tokenizer import save_tokenizer
from train.datamodule import MultilingualDataModule
from train.model.xglm import build_config

SEPARATOR = 2
SPECIAL = {0, 1, 2, 3}
NUM_DOCUMENTS = 4000


@pytest.fixture(scope="module")
def make_data(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: PreTrainedTokenizerFast):
    folder = tmp_path_factory.mktemp("clones")
    save_tokenizer(byte_tokenizer, folder / "tok")
    with (folder / "text.jsonl").open("w") as file:
        for number in range(NUM_DOCUMENTS + 40):
            split = "train" if number < NUM_DOCUMENTS else "valid"
            for language, word in (("en", "the greeting"), ("de", "die Begrüßung")):
                row = {"lang": language, "text": f"{word} {number} </s>", "uid": str(number), "split": split}
                file.write(json.dumps(row) + "\n")

    def make(**options: object) -> MultilingualDataModule:
        defaults = {"clones": {"en2": "en"}, "block_size": 32, "batch_size": 6, "cache": str(folder / "cache")}
        sources = [LocalText(str(folder / "text.jsonl"))]
        data = MultilingualDataModule(sources, str(folder / "tok"), **(defaults | options))  # type: ignore[arg-type]
        data.prepare_data()
        data.setup()
        return data

    return make


def documents(prepared: PreparedText, language: str, split: str) -> list[tuple[int, ...]]:
    tokens = prepared.tokens(language, split).read(0, 10**9)
    return [tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == SEPARATOR)[1:])]


def test_streams_share_only_special_tokens_and_no_document(make_data, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    data = make_data()
    shift = len(byte_tokenizer)
    assert data.languages == ("de", "en", "en2")
    assert data.clones == data.prepared_text.clones == {"en2": {"of": "en", "shift": shift}}
    assert data.vocab_size == data.prepared_text.vocab_size == 2 * shift
    streams = {language: documents(data.prepared_text, language, "train") for language in data.languages}
    own, cloned = ({token for document in streams[name] for token in document} for name in ("en", "en2"))
    assert own & cloned == {SEPARATOR}
    assert min(cloned - SPECIAL) >= shift
    back = [tuple(t if t in SPECIAL else t - shift for t in document) for document in streams["en2"]]
    assert not set(streams["en"]) & set(back)
    assert len(streams["en"]) + len(back) == NUM_DOCUMENTS == len(streams["de"])
    whole = documents(make_data(clones=None).prepared_text, "en", "train")
    assert sorted([*streams["en"], *back]) == sorted(whole)
    assert len(back) == pytest.approx(NUM_DOCUMENTS / 2, abs=5 * np.sqrt(NUM_DOCUMENTS / 4))


def test_unigrams_of_clone_and_original_are_equal(make_data, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    data = make_data()
    shift = len(byte_tokenizer)
    shares = {}
    for language, offset in (("en", 0), ("en2", shift)):
        tokens = data.prepared_text.tokens(language, "train").read(0, 10**9)
        tokens = tokens[~np.isin(tokens, list(SPECIAL))] - offset
        shares[language] = np.bincount(tokens, minlength=shift) / len(tokens)
    assert np.abs(shares["en"] - shares["en2"]).max() < 0.01  # ten times what dealing 4,000 documents scatters
    assert sum(data.probabilities.values()) == pytest.approx(1)


def test_held_out_text_is_parallel(make_data, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = make_data().prepared_text
    own, cloned = (prepared.tokens(language, "valid").read(0, 10**9) for language in ("en", "en2"))
    assert np.array_equal(np.where(cloned == SEPARATOR, cloned, cloned - len(byte_tokenizer)), own)
    assert prepared.counts("en", "valid") == prepared.counts("en2", "valid")
    sizes = [prepared.token_bytes(language, "valid").read(0, 10**9) for language in ("en", "en2")]
    assert np.array_equal(*sizes)


def test_a_clone_changes_the_fingerprint_and_other_languages_not(make_data) -> None:
    with_clone, without = make_data(), make_data(clones=None)
    assert with_clone.fingerprint != without.fingerprint
    assert with_clone.fingerprint != make_data(clones={"en3": "en"}).fingerprint
    assert documents(with_clone.prepared_text, "de", "train") == documents(without.prepared_text, "de", "train")


def test_batches_go_on_exactly_and_prepared_text_names_its_clones(make_data) -> None:
    data = make_data()
    rows = [batch["input_ids"].tolist() for batch in data.train_batches(num_steps=30)]
    again = make_data().train_batches(num_steps=40)
    again.first = 17
    assert [batch["input_ids"].tolist() for batch in again][:13] == rows[17:]
    folder = str(data.prepared_text.folder)
    assert make_data(prepared=folder).languages == ("de", "en", "en2")
    with pytest.raises(ValueError, match=r"was prepared with the clones .*en2.*, but data\.clones gives none"):
        make_data(prepared=folder, clones=None)


def test_two_clones_deal_the_text_in_three_and_have_ids_of_their_own() -> None:
    clones = make_clones({"en3": "en", "en2": "en", "de2": "de"}, ("de", "en"), 100)
    assert clones == {"de2": Clone("de", 100), "en2": Clone("en", 200), "en3": Clone("en", 300)}
    dealt = [dealt_to(Document("en", f"text {i}", "train"), clones) for i in range(600)]
    assert {tuple(languages) for languages in dealt} == {("en",), ("en2",), ("en3",)}
    assert min(dealt.count([language]) for language in ("en", "en2", "en3")) > 150
    assert dealt_to(Document("en", "x", "test"), clones) == ["en", "en2", "en3"]
    assert dealt_to(Document("fr", "x", "train"), clones) == ["fr"]


def test_clones_that_cannot_be_are_refused(make_data) -> None:
    for clones, message in (
        ({"fr2": "fr"}, "fr2 is a clone of fr, which is not among the languages de, en"),
        ({"de": "en"}, "de is a language of the text already"),
        ({"../x": "en"}, "'../x' cannot name a language"),
    ):
        with pytest.raises(ValueError, match=message):
            make_data(clones=clones)
    data = make_data()
    size = len(data.tokenizer)
    config = build_config(
        vocab_size=size, d_model=8, num_layers=1, attention_heads=2, ffn_dim=8, max_position_embeddings=64
    )
    with pytest.raises(ValueError, match=rf"\(with en2: {2 * size:,}\) but .*set model.vocab_size to {2 * size}"):
        check_data(data, config)
