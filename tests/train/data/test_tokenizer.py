"""The tokenizer gives every text back, knows XGLM's special ids, and gives small languages their share."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from train.data.tokenizer import (
    check_request,
    ensure_tokenizer,
    format_fertility,
    load_tokenizer,
    measure_fertility,
    save_tokenizer,
    train_tokenizer,
)

DATA = Path(__file__).parents[3] / "data"

AWKWARD = (
    "",
    " two  spaces\tand\u00a0a no-break space \n\n newlines\r\n",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇩🇪",
    "हिन्दी में लिखना, தமிழ், বাংলা, العَرَبِيَّة, עברית, ไทย, 한국어, Ωραία",
    "decomposed e\u0301 is not composed é; ﬁ ligature; ½",
    "\x00\x01\x7f\u200b\ufeff\U0010ffff",
    "</s> <s> <pad> <unk> written out",
    "1234567890 3.14159 --==-- ####",
)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    frame = pq.read_table(DATA / "embedded_cdda10.parquet", columns=["lang", "split", "text"]).to_pandas()
    frame = frame[frame.split == "train"]
    return {str(language): group.text.head(80).tolist() for language, group in frame.groupby("lang")}


@pytest.fixture(scope="module")
def trained(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, vocab_size=1500)


def test_every_text_of_ten_languages_and_every_awkward_string_comes_back(
    trained: PreTrainedTokenizerFast,
) -> None:
    frame = pq.read_table(DATA / "embedded_cdda10.parquet", columns=["lang", "split", "text"]).to_pandas()
    unseen = frame[frame.split != "train"].text.tolist()  # held-out text of all ten languages
    declaration = pq.read_table(DATA / "embedded_udhr18.parquet", columns=["text"])["text"].to_pylist()
    for text in (*unseen, *declaration, *AWKWARD):
        ids = trained(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert trained.decode(ids) == text
        assert trained.unk_token_id not in ids


def test_special_ids_and_prefix_are_those_of_xglm(trained: PreTrainedTokenizerFast) -> None:
    assert trained.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (trained.bos_token_id, trained.pad_token_id, trained.eos_token_id, trained.unk_token_id) == (0, 1, 2, 3)
    ids = trained("hello")["input_ids"]
    assert ids[0] == 2
    assert 2 not in ids[1:]
    pair = trained("hello", "there")["input_ids"]
    assert pair == [2, *ids[1:], 2, 2, *trained("there")["input_ids"][1:]]


def test_combining_marks_stay_in_their_word() -> None:
    word = "हिन्दी"
    trained = train_tokenizer({"hi": [f"{word} {word}"] * 20}, vocab_size=274)
    # a pattern without \p{M} could never merge across the vowel signs
    assert len(trained(f"{word} {word}", add_special_tokens=False)["input_ids"]) <= 6


def test_saved_folder_loads_in_plain_transformers(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(trained, tmp_path / "tok")
    for again in (AutoTokenizer.from_pretrained(tmp_path / "tok"), load_tokenizer(tmp_path / "tok")):
        assert len(again) == 1500
        for text in AWKWARD:
            assert again(text)["input_ids"] == trained(text)["input_ids"]
        assert again.pad_token_id == 1
    with pytest.raises(ValueError, match="not empty"):
        save_tokenizer(trained, tmp_path / "tok")
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]


def test_training_is_reproducible(texts: dict[str, list[str]], trained: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(texts, vocab_size=1500)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_a_small_language_gets_a_share_by_temperature() -> None:
    large = [f"plain english sentence number {number} about the weather and the road" for number in range(3000)]
    small = ["Ωραία μέρα σήμερα στην πόλη", "καλημέρα σε όλους τους φίλους μου"]
    probe = {"el": small}
    flat = train_tokenizer({"en": large, "el": small}, vocab_size=400, alpha=0.0)
    by_size = train_tokenizer({"en": large, "el": small}, vocab_size=400, alpha=1.0)
    assert measure_fertility(flat, probe)[0].tokens < 0.7 * measure_fertility(by_size, probe)[0].tokens


def test_fertility_counts_by_hand(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = {row.language: row for row in measure_fertility(byte_tokenizer, {"en": ["ab cd", "é"], "zh": ["中文"]})}
    assert (rows["en"].tokens, rows["en"].bytes, rows["en"].characters, rows["en"].words) == (7, 7, 6, 3)
    assert rows["en"].tokens_per_word == pytest.approx(7 / 3)
    assert rows["zh"].tokens_per_word is None
    assert rows["zh"].tokens_per_character == 3
    assert rows["zh"].bytes_per_token == 1
    assert format_fertility(list(rows.values())).splitlines()[2].split() == ["zh", "6", "-", "3.000", "1.00"]
    with pytest.raises(ValueError, match="no text for language 'fr'"):
        measure_fertility(byte_tokenizer, {"fr": []})


def test_impossible_requests_say_why() -> None:
    with pytest.raises(ValueError, match="vocab_size 1000000000 is too large: use up to 10,000,000"):
        check_request(10**9, 0.3)  # the library would abort the process
    with pytest.raises(ValueError, match="vocab_size 100 is too small"):
        train_tokenizer({"en": ["text"]}, vocab_size=100)
    with pytest.raises(ValueError, match="supports only 26[0-9] tokens: set vocab_size to 26[0-9]"):
        train_tokenizer({"en": ["some text"]}, vocab_size=5000)
    with pytest.raises(ValueError, match="no text for language 'de'"):
        train_tokenizer({"en": ["some text"], "de": []}, vocab_size=262)
    with pytest.raises(ValueError, match="no language"):
        train_tokenizer({}, vocab_size=300)
    for alpha in (-3.0, float("nan"), 1.5):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
            train_tokenizer({"en": ["text"]}, vocab_size=300, alpha=alpha)


def test_what_a_killed_writer_left_is_cleared_and_does_not_count(
    tmp_path: Path, trained: PreTrainedTokenizerFast
) -> None:
    other = ".tok.8k.123.tmp"  # of a writer that lives
    for leftover in (tmp_path / ".tok.123.tmp", tmp_path / other, tmp_path / "tok" / ".tokenizer.json.123.tmp"):
        leftover.mkdir(parents=True)
    assert ensure_tokenizer(tmp_path / "tok", lambda: {"en": ["some text to learn"]}, 262)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other, ".tok.lock", "tok"]
    assert len(load_tokenizer(tmp_path / "tok")) == 262


def test_an_impossible_request_or_a_taken_folder_reads_no_text(tmp_path: Path) -> None:
    def texts() -> dict[str, list[str]]:
        raise AssertionError("text was read")

    with pytest.raises(ValueError, match="vocab_size 100 is too small"):
        ensure_tokenizer(tmp_path / "tok", texts, 100)
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "notes").touch()
    assert not ensure_tokenizer(tmp_path / "tok", texts, 300)


def test_a_missing_tokenizer_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m train tokenizer"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize(("name", "content"), [("tokenizer_config.json", "[1]"), ("tokenizer.json", "{}")])
def test_a_broken_tokenizer_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileNotFoundError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
