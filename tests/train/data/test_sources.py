"""Sources read every layout, keep stated splits, and name file and line when something is wrong."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from babelscope import records as records_module
from train.data.documents import (
    Document,
    TextSource,
    assign_split,
    collect_texts,
    resolve_languages,
    stream_documents,
)
from train.data.sources import HubText, LocalText

DATA = Path(__file__).parents[3] / "data"


def everything(source: TextSource) -> list[Document]:
    return list(stream_documents([source], source.languages()))


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


RECORDS = [
    {"lang": "de", "text": "Hallo Welt", "split": "train"},
    {"lang": "en", "text": "Hello world", "split": "train"},
    {"lang": "en", "text": "Held out", "split": "validation"},
    {"lang": "de", "text": "  ", "split": "train"},
]
EXPECTED = [
    Document("de", "Hallo Welt", "train"),
    Document("en", "Hello world", "train"),
    Document("en", "Held out", "valid"),
]


def test_long_layout_is_the_same_from_parquet_jsonl_and_gzip(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    for name in ("a.parquet", "a.jsonl", "b.jsonl.gz"):
        source = LocalText(str(tmp_path / name))
        assert source.languages() == ("de", "en")
        assert everything(source) == EXPECTED


def test_lang_counts_before_language(tmp_path: Path) -> None:
    record = {"language": "German", "lang": "de", "text": "Hallo", "split": "train"}
    assert everything(LocalText(str(write_jsonl(tmp_path / "a.jsonl", [record])))) == [Document("de", "Hallo", "train")]


def test_wide_layout_skips_missing_translations_and_reads_indonesian_beside_a_uid(tmp_path: Path) -> None:
    records = [
        {"uid": "1", "split": "train", "source": "x", "en": "one", "id": "satu"},
        {"uid": "2", "split": "test", "source": "x", "en": "two", "id": None},
    ]
    expected = [Document("en", "one", "train"), Document("id", "satu", "train"), Document("en", "two", "test")]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "wide.parquet")
    for path in (tmp_path / "wide.parquet", write_jsonl(tmp_path / "wide.jsonl", records)):
        source = LocalText(str(path))
        assert source.languages() == ("en", "id")
        assert everything(source) == expected


def test_one_file_per_language_with_globs_and_plain_text(tmp_path: Path) -> None:
    (tmp_path / "en.1.txt").write_text("first\n\nsecond\n")
    (tmp_path / "en.2.txt").write_text("third\n")
    write_jsonl(tmp_path / "de.jsonl", [{"text": "eins", "lang": "ignored, the mapping says de"}])
    source = LocalText(
        files_by_language={"en": str(tmp_path / "en.*.txt"), "de": str(tmp_path / "de.jsonl")},
        valid_share=0.0,
        test_share=0.0,
    )
    texts = [(document.language, document.text) for document in everything(source)]
    assert texts == [("de", "eins"), ("en", "first"), ("en", "second"), ("en", "third")]
    assert [document.language for document in stream_documents([source], ["en"])] == ["en"] * 3


def test_a_name_with_brackets_is_the_file_and_endings_may_be_capitals(tmp_path: Path) -> None:
    folder = tmp_path / "set [v2]"
    folder.mkdir()
    (folder / "EN.TXT.GZ").write_bytes(gzip.compress(b"first\n"))
    source = LocalText(files_by_language={"en": str(folder / "EN.TXT.GZ")})
    assert [document.text for document in everything(source)] == ["first"]


@pytest.mark.parametrize("option", ["key_column", "split_column", "language_column"])
def test_a_column_that_is_named_must_be_there(tmp_path: Path, option: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(ValueError, match=rf"a\.jsonl: no column 'typo' \({option}\); columns are"):
        everything(LocalText(str(path), **{option: "typo"}))


def test_embedded_sample_keeps_its_splits() -> None:
    counts = Counter(
        (document.language, document.split) for document in everything(LocalText(str(DATA / "embedded_cdda10.parquet")))
    )
    assert len({language for language, _ in counts}) == 10
    assert {split: counts["ja", split] for split in ("train", "valid", "test")} == {
        "train": 5222,
        "valid": 101,
        "test": 157,
    }


def test_split_by_hash_keeps_translations_together_and_has_the_stated_shares(tmp_path: Path) -> None:
    records = [
        {"lang": language, "uid": f"row {row}", "text": f"{language} {row}"}
        for row in range(4000)
        for language in ("en", "fr")
    ]
    source = LocalText(str(write_jsonl(tmp_path / "a.jsonl", records)), valid_share=0.1, test_share=0.05)
    split_of = {document.text: document.split for document in everything(source)}
    assert all(split_of[f"en {row}"] == split_of[f"fr {row}"] for row in range(4000))
    shares = Counter(split_of.values())
    assert shares["valid"] / 8000 == pytest.approx(0.1, abs=0.02)  # five standard errors
    assert shares["test"] / 8000 == pytest.approx(0.05, abs=0.017)
    assert assign_split("row 7", 0.1, 0.05) == split_of["en 7"]
    assert {assign_split(str(i), 0.0, 0.0) for i in range(100)} == {"train"}


def test_row_groups_of_a_large_parquet_file_become_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.Table.from_pylist([{"lang": "en", "text": f"text {i}", "split": "train"} for i in range(100)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = LocalText(str(tmp_path / "a.parquet"))
    assert len(source.shards(["en"])) == 1
    monkeypatch.setattr(records_module, "SHARD_BYTES", 1)
    assert len(source.shards(["en"])) == 10
    assert [document.text for document in everything(source)] == [f"text {i}" for i in range(100)]


def test_collect_texts_stops_at_its_limit_and_keeps_what_is_asked_for(tmp_path: Path) -> None:
    records = [{"lang": "en", "text": f"{i:04d}", "split": "train"} for i in range(100)]
    source = LocalText(str(write_jsonl(tmp_path / "a.jsonl", records)))
    assert collect_texts([source], ["en"], "train", 12) == {"en": ["0000", "0001", "0002"]}
    assert collect_texts([source], ["en"], "valid", 12) == {"en": []}
    odd = collect_texts([source], ["en"], "train", 8, keep=lambda document: int(document.text) % 2 == 1)
    assert odd == {"en": ["0001", "0003"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"lang": "en", "text": "ok"}\n{"lang": "en", "text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"lang": "en", "text": "ok"}\n["en", "text"]\n', r"a\.jsonl:2: a JSON object is needed"),
        ("a.jsonl", b'{"lang": "en", "text": "ok"}\n{"lang": "en", "text": 7}\n', r"a\.jsonl:2: .*'text' holds int"),
        ("a.jsonl", b'{"lang": "en", "text": "ok"}\n{"lang": "en"}\n', r"a\.jsonl:2: no field 'text'"),
        ("a.jsonl", b'{"lang": "en", "text": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b'{"lang": "English", "text": "x"}\n', r"a\.jsonl:1: 'English' .* is not a language code"),
        ("a.jsonl", b'{"lang": "en", "text": "x", "split": "dev2"}\n', r"a\.jsonl:1: split 'dev2' is none of"),
        ("a.jsonl", b'{"lang": "en", "text": "x", "split": ["train"]}\n', r"a\.jsonl:1: split \['train'\] is none of"),
        ("a.jsonl", b'{"lang": "en", "text": "x \\ud800"}\n', r"'text': character 2 is half a"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: brackets are nested too deep"),
        ("a.jsonl", b'{"text": "x"}\n', r"no column of languages .*files_by_language"),
        ("a.jsonl", b"\n\n", r"a\.jsonl: no record in this file"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet: not a readable parquet file"),
        ("a.csv", b"lang,text\n", r"a\.csv: not a known kind of text file"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        everything(LocalText(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_a_text_column_of_numbers_and_a_damaged_page_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"lang": ["en"], "text": [1.5]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match=r"numbers\.parquet: column 'text' holds double, not text"):
        everything(LocalText(str(tmp_path / "numbers.parquet")))
    table = pa.table({"lang": ["en"] * 500, "text": [f"text {i}" * 20 for i in range(500)]})
    pq.write_table(table, tmp_path / "damaged.parquet", compression="zstd", use_dictionary=False)
    raw = bytearray((tmp_path / "damaged.parquet").read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 200] = bytes(200)
    (tmp_path / "damaged.parquet").write_bytes(raw)
    with pytest.raises(ValueError, match=r"damaged\.parquet: damaged after row"):
        everything(LocalText(str(tmp_path / "damaged.parquet")))


def test_missing_files_and_unknown_languages_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        LocalText(str(tmp_path / "none.jsonl")).languages()
    with pytest.raises(ValueError, match="is a folder"):
        LocalText(str(tmp_path)).languages()
    source = LocalText(str(write_jsonl(tmp_path / "a.jsonl", RECORDS)))
    assert resolve_languages([source], None) == ("de", "en")
    assert resolve_languages([source], ["en"]) == ("en",)
    with pytest.raises(ValueError, match="unknown language sw: the sources offer de, en"):
        resolve_languages([source], ["en", "sw"])
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        resolve_languages([], None)
    with pytest.raises(ValueError, match="either path or files_by_language"):
        LocalText()
    with pytest.raises(ValueError, match="valid_share"):
        LocalText("x.jsonl", valid_share=0.6, test_share=0.6)
    with pytest.raises(ValueError, match="valid_share nan"):
        LocalText("x.jsonl", valid_share=float("nan"))
    with pytest.raises(ValueError, match=r"'\.\./\.\./evil' in files_by_language is not a language code"):
        LocalText(files_by_language={"../../evil": "x.jsonl"})
    with pytest.raises(ValueError, match=r"data\.languages names en twice"):
        resolve_languages([source], ["en", "de", "en"])


def test_settings_ignore_where_files_lie_and_notice_how_they_are_read(tmp_path: Path) -> None:
    here, there = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_jsonl(here, RECORDS)
    write_jsonl(there, RECORDS)
    assert LocalText(str(here)).settings() == LocalText(str(there)).settings()
    assert LocalText(str(here)).settings() != LocalText(str(here), valid_share=0.2).settings()


@pytest.fixture
def local_dataset(tmp_path: Path) -> Path:
    """A dataset folder as the hub has it: one configuration per language, two files each."""
    folder = tmp_path / "dataset"
    for language in ("en", "es"):
        (folder / language).mkdir(parents=True)
        for part in range(2):
            records = [{"text": f"{language} {part} {i}", "url": "u"} for i in range(50)]
            write_jsonl(folder / language / f"train-{part}.jsonl", records)
        write_jsonl(folder / language / "validation.jsonl", [{"text": f"{language} held out", "url": "u"}])
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {code}/train-*.jsonl\n"
        f"  - split: validation\n    path: {code}/validation.jsonl\n"
        for name, code in (("eng_Latn", "en"), ("spa_Latn", "es"))
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    return folder


def test_hub_dataset_streams_from_a_local_folder_offline(
    local_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = {"en": "eng_Latn", "es": "spa_Latn"}
    source = HubText(str(local_dataset), names, valid_split="validation", test_share=0.0, num_shards=2)
    assert source.languages() == ("en", "es")
    assert len(source.shards(["es"])) == 3
    documents = list(stream_documents([source], ["es"]))
    assert sorted(d.text for d in documents if d.split == "train") == sorted(
        f"es {part} {i}" for part in range(2) for i in range(50)
    )
    assert [d.text for d in documents if d.split == "valid"] == ["es held out"]
    assert list(stream_documents([HubText(str(local_dataset), names, num_shards=5)], ["es"])) == list(
        stream_documents([HubText(str(local_dataset), names)], ["es"])
    )  # the language has two files: three of the parts are empty
    held_out = HubText(str(local_dataset), names, max_documents=60, valid_share=0.2, test_share=0.0)
    splits = Counter(d.split for d in stream_documents([held_out], ["en"]))
    assert sum(splits.values()) == 60
    assert 0 < splits["valid"] < 30


def test_hub_dataset_mistakes_are_named(local_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="names is empty"):
        HubText(str(local_dataset), {})
    for source, message in (
        (HubText(str(local_dataset), {"en": "deu_Latn"}), r"dataset \(deu_Latn\), split 'train': cannot be read"),
        (HubText(str(local_dataset), {"en": "eng_Latn"}, split="nope"), "split 'nope': cannot be read"),
        (
            HubText(str(local_dataset), {"en": "eng_Latn"}, text_column="body"),
            "column 'body' is not there; columns are text, url",
        ),
        (HubText(str(tmp_path / "none"), {"en": "eng_Latn"}), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            everything(source)
        assert "\n" not in str(caught.value)


def test_yaml_names_sources_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sources", type=list[TextSource])
    entry = {"class_path": "train.data.sources.LocalText", "init_args": {"path": "x.jsonl", "valid_share": 0.02}}
    parsed = parser.instantiate_classes(parser.parse_object({"sources": [entry]})).sources
    assert parsed == [LocalText("x.jsonl", valid_share=0.02)]
