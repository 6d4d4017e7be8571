"""Prepared text: the same tokens whatever way it was made, nothing half-written, changes noticed, bytes exact."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from train.data import prepare as prepare_module
from train.data.prepare import Recipe, format_prepared, verify
from train.data.sources import LocalText
from train.data.streams import PreparedText, TokenStream
from train.data.tokenizer import save_tokenizer, train_tokenizer

LANGUAGES = ("de", "en", "zh")


def prepare(
    sources: list[LocalText], tokenizer: PreTrainedTokenizerFast, cache: Path, *, workers: int = 0, **options: Any
) -> PreparedText:
    return prepare_module.prepare(Recipe(sources, tokenizer, **options), cache, workers=workers)


def find_prepared(
    sources: list[LocalText], tokenizer: PreTrainedTokenizerFast, cache: Path, **options: Any
) -> PreparedText | None:
    return prepare_module.find_prepared(Recipe(sources, tokenizer, **options), cache)


def write_shards(folder: Path, num_files: int = 3, num_documents: int = 30) -> str:
    """Long JSONL files; returns their pattern."""
    folder.mkdir(exist_ok=True)
    words = {"de": "Grüße aus Köln", "en": "greetings from London", "zh": "来自北京的问候"}
    for number in range(num_files):
        with (folder / f"part{number}.jsonl").open("w") as file:
            for i in range(num_documents):
                split = {7: "valid", 8: "test"}.get(i, "train")
                for language in LANGUAGES:
                    text = f"{words[language]} {number} {i} {'x' * i}"
                    file.write(
                        json.dumps({"lang": language, "text": text, "split": split, "uid": f"{number}/{i}"}) + "\n"
                    )
    return str(folder / "part*.jsonl")


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    return write_shards(tmp_path / "text")


def streams(prepared: PreparedText) -> dict[tuple[str, str], list[int]]:
    return {
        (language, split): prepared.tokens(language, split).read(0, 10**9).tolist()
        for language in prepared.languages
        for split in ("train", "valid", "test")
    }


def test_stream_is_every_document_in_order_and_counts_are_exact(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = LocalText(pattern)
    prepared = prepare([source], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    assert prepared.languages == LANGUAGES
    documents = [d for shard in source.shards(LANGUAGES) for d in source.read(shard, LANGUAGES)]
    for (language, split), tokens in streams(prepared).items():
        texts = [d.text for d in documents if (d.language, d.split) == (language, split)]
        expected = [i for text in texts for i in byte_tokenizer(text)["input_ids"]]  # prefixed by </s>
        assert tokens == expected
        assert prepared.counts(language, split) == {
            "tokens": len(expected),
            "bytes": sum(len(text.encode()) for text in texts),
            "documents": len(texts),
            "excluded": 0,
            "excluded_text": 0,
            "excluded_uid": 0,
            "excluded_ngrams": 0,
        }
        if split != "train":
            assert (
                prepared.token_bytes(language, split).read(0, 10**9).sum() == prepared.counts(language, split)["bytes"]
            )
    assert format_prepared(prepared).splitlines()[1].split()[:3] == ["de", "train", "84"]
    verify(prepared)


def test_processes_and_several_sources_give_the_same_tokens(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "a", languages=LANGUAGES)
    parallel = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "b", languages=LANGUAGES, workers=2)
    folder = Path(pattern).parent
    parts = [LocalText(str(folder / f"part{number}.jsonl")) for number in range(3)]
    split = prepare(parts, byte_tokenizer, tmp_path / "c", languages=LANGUAGES)
    assert streams(alone) == streams(parallel) == streams(split)
    assert alone.fingerprint == parallel.fingerprint == split.fingerprint


def test_what_is_prepared_is_found_and_a_change_of_anything_is_noticed(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    cache = tmp_path / "cache"
    prepared = prepare([LocalText(pattern)], byte_tokenizer, cache, languages=LANGUAGES)
    found = find_prepared([LocalText(pattern)], byte_tokenizer, cache, languages=LANGUAGES)
    assert found is not None
    assert found.folder == prepared.folder
    other_tokenizer = train_tokenizer({"en": ["greetings from London"]}, vocab_size=265)
    assert find_prepared([LocalText(pattern)], other_tokenizer, cache, languages=LANGUAGES) is None
    assert find_prepared([LocalText(pattern)], byte_tokenizer, cache, languages=("de", "en")) is None
    with (Path(pattern).parent / "part1.jsonl").open("a") as file:
        file.write('{"lang": "en", "text": "one more", "split": "train"}\n')
    assert find_prepared([LocalText(pattern)], byte_tokenizer, cache, languages=LANGUAGES) is None
    changed = prepare([LocalText(pattern)], byte_tokenizer, cache, languages=LANGUAGES)
    assert changed.fingerprint != prepared.fingerprint
    assert prepared.folder.is_dir()  # the old text stays for runs that used it


def test_moved_files_are_still_found(tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    moved = write_shards(tmp_path / "elsewhere")
    found = find_prepared([LocalText(moved)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    assert found is not None
    assert found.folder == prepared.folder


def test_an_interrupted_preparation_goes_on_where_it_stopped(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = prepare_module.write_shard

    def stops_in_the_second(task: prepare_module.Task) -> None:
        if len(written) == 1:
            (task.folder / f".{task.name}.0.tmp").mkdir()  # what a killed process leaves
            (task.folder / f".{task.name}.0.tmp" / "en.train.tokens").write_bytes(b"half")
            raise KeyboardInterrupt
        original(task)
        written.append(task.name)

    monkeypatch.setattr(prepare_module, "write_shard", stops_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    assert find_prepared([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES) is None

    def counts(task: prepare_module.Task) -> None:
        original(task)
        written.append(task.name)

    monkeypatch.setattr(prepare_module, "write_shard", counts)
    resumed = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    assert written == ["00000", "00001", "00002"]
    assert not list(resumed.folder.glob("shards/.*"))
    monkeypatch.undo()
    clean = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "clean", languages=LANGUAGES)
    assert streams(resumed) == streams(clean)
    assert resumed.fingerprint == clean.fingerprint


PROGRAM = """
import sys, time
from train.data.sources import LocalText
from tokenizers import Tokenizer
import train.data.prepare
pattern, tokenizer, cache = sys.argv[1:]
class Light:  # what prepare needs of a tokenizer, without the seconds that importing transformers takes
    backend_tokenizer = Tokenizer.from_file(tokenizer + "/tokenizer.json")
    eos_token_id, unk_token_id = 2, 3
    def __len__(self):
        return self.backend_tokenizer.get_vocab_size()
original = train.data.prepare.write_shard
def slowly(task):
    original(task)
    time.sleep(0.3)
train.data.prepare.write_shard = slowly
recipe = train.data.prepare.Recipe([LocalText(pattern)], Light(), ("de", "en", "zh"))
train.data.prepare.prepare(recipe, cache)
"""


def test_one_of_two_processes_is_killed_and_the_other_finishes(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    pattern = write_shards(tmp_path / "text", num_files=6, num_documents=9)
    save_tokenizer(byte_tokenizer, tmp_path / "tok")
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", PROGRAM, pattern, str(tmp_path / "tok"), str(cache)]
    root = Path(__file__).parents[3]
    processes = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while len(list(cache.glob("*/shards/0*/shard.json"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        processes[0].kill()  # SIGKILL, whether it was at work or waiting for the lock
        errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[1].returncode == 0, errors[1]
    found = find_prepared([LocalText(pattern)], byte_tokenizer, cache, languages=LANGUAGES)
    assert found is not None
    verify(found)
    clean = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "clean", languages=LANGUAGES)
    assert streams(found) == streams(clean)


def test_an_error_in_a_shard_leaves_no_half_written_shard(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    with (Path(pattern).parent / "part2.jsonl").open("a") as file:
        file.write('{"lang": "en", "text": 5}\n')
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"part2\.jsonl:91: field 'text' holds int"):
            prepare(
                [LocalText(pattern)], byte_tokenizer, tmp_path / f"c{workers}", languages=LANGUAGES, workers=workers
            )
        names = {path.name for path in (tmp_path / f"c{workers}").glob("*/shards/*")}
        assert names <= {"00000", "00001"}
        assert not list((tmp_path / f"c{workers}").glob("*/manifest.json"))


def test_excluded_texts_are_never_trained_on_and_counted(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    concept_file = tmp_path / "concepts.jsonl"
    caplog.set_level(logging.INFO)
    excluded = ["greetings from London 0 3 xxx", "GREETINGS  from London 1 4 xxxx ", "not in the text"]
    concept_file.write_text("".join(json.dumps({"concept": "c", "text": text}) + "\n" for text in excluded))
    options = {"languages": LANGUAGES, "exclude": [str(concept_file)]}
    prepared = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", **options)
    assert [prepared.counts(language, "train")["excluded"] for language in LANGUAGES] == [0, 2, 0]
    assert prepared.counts("en", "train")["excluded_text"] == 2
    assert "en: 2 of 84 documents left out of training (2 by text, 0 by uid, 0 by ngrams)" in caplog.text
    text = byte_tokenizer.decode(prepared.tokens("en", "train").read(0, 10**9))
    assert "London 0 2 " in text
    assert "London 0 3 " not in text
    assert "London 1 4 " not in text
    assert find_prepared([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES) is None
    concept_file.write_text('{"text": "nothing like it"}\n')
    prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", **options)
    assert "nothing was excluded" in caplog.text
    concept_file.write_text('{"sentence": "x"}\n')
    with pytest.raises(ValueError, match=r"concepts\.jsonl:1: no text in column 'text'"):
        prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", **options)


def test_a_language_without_training_text_is_named(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"lang": "en", "text": "x", "split": "train"}\n{"lang": "sw", "text": "y", "split": "test"}\n')
    with pytest.raises(ValueError, match="no training text for sw"):
        prepare([LocalText(str(path))], byte_tokenizer, tmp_path / "cache", languages=("en", "sw"))
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]


def test_damage_to_prepared_text_is_named(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    victim = prepared.folder / "shards" / "00001" / "en.train.tokens"
    raw = victim.read_bytes()
    victim.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(ValueError, match=r"en\.train\.tokens: differs from its hash"):
        verify(PreparedText(prepared.folder))
    victim.write_bytes(raw[:-2])
    with pytest.raises(ValueError, match=r"en\.train\.tokens: \d+ bytes, the manifest says"):
        PreparedText(prepared.folder)
    victim.unlink()
    with pytest.raises(ValueError, match=r"en\.train\.tokens: missing"):
        PreparedText(prepared.folder)
    (prepared.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: not valid JSON"):
        PreparedText(prepared.folder)
    for content, message in (
        ("[1, 2]", "format None, this version reads"),
        ('{"format": 2}', "'fingerprint' is not there"),
        ("[" * 100_000, "not valid JSON"),
    ):
        (prepared.folder / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            PreparedText(prepared.folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="python -m train prepare"):
        PreparedText(tmp_path / "nothing")


def test_a_token_outside_the_vocabulary_is_named(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    victim = prepared.folder / "shards" / "00000" / "de.train.tokens"
    victim.write_bytes(b"\xff\xff" + victim.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"de\.train\.tokens: token 65535 is outside the vocabulary of \d+"):
        PreparedText(prepared.folder).tokens("de", "train").read(0, 10)


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "{", "[" * 100_000])
def test_a_broken_memo_of_hashes_is_made_again(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast, content: str
) -> None:
    first = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    (tmp_path / "cache" / "sha256.json").write_text(content)
    assert prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES).folder == first.folder


def test_what_is_prepared_serves_also_where_no_memo_can_be_written(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    first = prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES)
    (tmp_path / "cache" / "sha256.json").unlink()
    (tmp_path / "cache" / "sha256.json").mkdir()  # stands for a folder that is only to be read
    (tmp_path / "cache" / "sha256.json" / "x").touch()
    assert prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES).folder == first.folder


def test_a_killed_process_is_named_and_its_work_resumed(
    tmp_path: Path, pattern: str, byte_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "write_shard", killed)
    with pytest.raises(ChildProcessError, match="one of 2 processes that tokenise was killed") as caught:
        prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES, workers=2)
    assert isinstance(caught.value, OSError)  # one line at the command
    monkeypatch.undo()
    prepare([LocalText(pattern)], byte_tokenizer, tmp_path / "cache", languages=LANGUAGES, workers=2)


def killed(task: prepare_module.Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_stream_reads_across_its_files_and_pickles_without_its_maps(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.uint16)
    pieces = np.split(values, [10, 10, 45])  # the second is empty
    files = []
    for number, piece in enumerate(pieces):
        piece.tofile(tmp_path / f"{number}.tokens")
        files.append((tmp_path / f"{number}.tokens", len(piece)))
    stream = TokenStream(files, np.dtype(np.uint16))
    assert len(stream) == 100
    for start, count in ((0, 100), (5, 10), (9, 1), (10, 1), (44, 2), (95, 50), (100, 5), (30, 0)):
        assert stream.read(start, count).tolist() == values[start : start + count].tolist()
    assert len(pickle.dumps(stream)) < 2000
    assert pickle.loads(pickle.dumps(stream)).read(40, 10).tolist() == values[40:50].tolist()
