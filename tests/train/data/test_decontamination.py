"""The audit finds planted copies and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from train.data.decontamination import (
    Exclusion,
    audit,
    format_audit,
    ngram_hashes,
    normalise,
    read_exclusion,
    text_digest,
    units,
)
from train.data.documents import Document, stream_documents
from train.data.sources import LocalText

RNG = random.Random(0)
VOCABULARY = [f"word{i}" for i in range(5000)]


def sentence(num_words: int = 30) -> str:
    return " ".join(RNG.choices(VOCABULARY, k=num_words))


def test_planted_copies_are_found_and_clean_text_is_not() -> None:
    training = [sentence() for _ in range(300)]
    clean = [sentence() for _ in range(20)]
    words = training[5].split()
    planted = "new beginning " + " ".join(words[3:16]) + " other end"  # exactly 13 words in common
    shorter = "new beginning " + " ".join(words[3:15]) + " other end"  # 12 in common
    disguised = " ".join(words[10:25]).upper().replace(" ", ",  ") + "!"
    [report] = audit(((("en"), text) for text in training), {"en": [*clean, planted, shorter, disguised]})
    assert report.contaminated_texts == 2
    assert report.examples == (planted, disguised)
    assert report.found_ngrams == 1 + 3
    assert report.matching_training_texts == 1
    assert (report.evaluation_texts, report.training_texts) == (23, 300)
    assert format_audit([report]).splitlines()[1].split()[:4] == ["en", "23", "2", "8.70%"]


@pytest.mark.parametrize("code", ["zh", "zh-Hant", "cmn_Hans", "zho"])
def test_unspaced_scripts_are_compared_by_characters_and_languages_apart(code: str) -> None:
    characters = [chr(code) for code in range(0x4E00, 0x5E00)]
    text = "".join(RNG.choices(characters, k=60))
    copied = "".join(RNG.choices(characters, k=10)) + text[20:45] + "。"
    too_short = "".join(RNG.choices(characters, k=10)) + text[20:44]
    training = [(code, text), ("ja", "別の文です。" * 3), ("fr", text)]
    reports = {report.language: report for report in audit(training, {code: [copied, too_short], "ja": [copied]})}
    assert reports[code].examples == (copied,)
    assert reports["ja"].contaminated_texts == 0
    assert reports["ja"].training_texts == 1


def test_short_texts_match_only_whole_texts() -> None:
    training = [
        ("en", "Close the door."),
        ("en", "close the door and then open the window again for me and for him and her"),
    ]
    [report] = audit(training, {"en": ["close the door", "open the window"]})
    assert report.examples == ("close the door",)
    assert report.matching_training_texts == 1


def test_ngram_hashes_agree_exactly_when_the_words_agree() -> None:
    codes = units("a b c d a b c", "en")
    hashes = ngram_hashes(codes, 3)
    assert len(hashes) == 5
    assert hashes[0] == hashes[4]
    assert len(np.unique(hashes)) == 4
    assert ngram_hashes(units("c b a", "en"), 3)[0] not in hashes
    assert len(ngram_hashes(units("", "en"), 3)) == 0
    assert len(ngram_hashes(units("?! ...", "en"), 3)) == 0


def test_degenerate_requests() -> None:
    [report] = audit([("en", "x")], {"en": []})
    assert (report.contaminated_texts, report.ngrams) == (0, 0)
    [report] = audit([("en", "?!")], {"en": ["...", ""]})
    assert (report.contaminated_texts, report.found_ngrams) == (0, 0)
    with pytest.raises(ValueError, match="no training text for sw"):
        audit([("en", "x")], {"en": ["x"], "sw": ["y"]})
    with pytest.raises(ValueError, match="at least 1"):
        audit([("en", "x")], {"en": ["x"]}, n=0)


def test_digests_ignore_case_width_and_space_and_nothing_else(tmp_path: Path) -> None:
    assert normalise("  Ｆｕｌｌ\u00a0WIDTH\n ﬁ ") == "full width fi"
    assert text_digest("Straße  x") == text_digest("STRASSE x")
    assert text_digest("a b") != text_digest("a  c")
    (tmp_path / "a.txt").write_text("One\nTwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    digests = read_exclusion([tmp_path / "a.txt", tmp_path / "b.jsonl"]).digests
    assert digests == {text_digest(text) for text in ("one", "two", "THREE")}
    with pytest.raises(FileNotFoundError, match=r"data\.exclude: .*c\.txt: no such file; .*analysis label"):
        read_exclusion([tmp_path / "c.txt"])


def documents_of(path: Path) -> dict[str, Document]:
    source = LocalText(str(path))
    return {document.text: document for document in stream_documents([source], source.languages())}


def test_translations_and_near_copies_go_with_an_excluded_text_and_nothing_else(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(40)]
    characters = "".join(chr(0x4E00 + i) for i in range(60))
    evaluation = [
        {"concept": "c", "language": "en", "uid": "7", "text": " ".join(words[:20]), "label": 1},
        {"concept": "c", "language": "zh", "uid": "8", "text": characters[:30], "label": 0},
    ]
    kept, gone = "kept", "gone"
    expected = [
        ("en", "1", " ".join(words[:20]).upper(), "text"),
        ("de", "7", "die Übersetzung", "uid"),
        ("en", "2", f"{gone} " + " ".join(words[3:16]) + " other end", "ngrams"),
        ("en", "3", f"{kept} " + " ".join(words[3:15]) + " other end", None),  # 12 words in common
        ("zh", "4", characters[5:30] + "别的", "ngrams"),
        ("zh", "5", characters[5:29] + "另外", None),  # 24 characters
        ("de", "9", "etwas anderes", None),
    ]
    training = [{"lang": a, "uid": b, "text": c, "split": "train"} for a, b, c, _ in expected]
    for name, rows in (("eval.jsonl", evaluation), ("train.jsonl", training)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    exclusion = read_exclusion([tmp_path / "eval.jsonl"])
    found = documents_of(tmp_path / "train.jsonl")
    assert [exclusion.rule(found[text]) for _, _, text, _ in expected] == [rule for *_, rule in expected]
    assert exclusion.keys == {"7", "8"}
    assert not exclusion.rule(found["etwas anderes"])
    off = read_exclusion([tmp_path / "eval.jsonl"], n=0)
    assert [off.rule(found[text]) for _, _, text, _ in expected] == [
        rule if rule != "ngrams" else None for *_, rule in expected
    ]
    assert not Exclusion().digests
    with pytest.raises(ValueError, match=r"data\.exclude_ngrams is -1"):
        read_exclusion([], n=-1)


def test_keys_are_uid_or_doc_with_sent_id_never_doc_alone(tmp_path: Path) -> None:
    rows = [
        {"lang": "en", "doc": "a", "sent_id": "1", "text": "one", "split": "train"},
        {"lang": "en", "doc": "a", "text": "two", "split": "train"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = documents_of(tmp_path / "train.jsonl")
    assert (found["one"].key, found["two"].key) == ("a/1", "")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"uid": "a/1", "text": "eins"}) + "\n")
    exclusion = read_exclusion([tmp_path / "eval.jsonl"])
    assert (exclusion.rule(found["one"]), exclusion.rule(found["two"])) == ("uid", None)
