"""The alignment analysis on texts whose relation is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.alignment import Alignment, choose_parallel
from analysis.snapshots import Snapshot
from analysis.texts import Text


@pytest.fixture
def write_parallel(tmp_path: Path) -> Callable[..., str]:
    """Random texts; a language listed in `copies` repeats the texts of the first one."""

    def write(languages: str = "aa bb cc", copies: str = "bb", count: int = 40) -> str:
        generator = np.random.default_rng(0)
        path = tmp_path / "parallel.jsonl"
        first = None
        with path.open("w") as file:
            for language in languages.split():
                texts = ["".join(generator.choice(list("abcdefghijklmnop "), 20)) + "." for _ in range(count)]
                first = first or texts
                for number, text in enumerate(first if language in copies else texts):
                    record = {"language": language, "uid": str(number), "split": "test", "text": text}
                    file.write(json.dumps(record) + "\n")
        return str(path)

    return write


def _alignment(path: str, **options: object) -> Alignment:
    defaults = {"splits": ["test"], "permutations": 60, "neighbours": 5}
    return Alignment(texts=path, **(defaults | options))  # type: ignore[arg-type]


def _one(rows: list[Row], metric: str, **fields: object) -> Row:
    fields = {"layer": None, "language": None, "other_language": None} | fields
    (row,) = [row for row in rows if row.metric == metric and all(getattr(row, k) == v for k, v in fields.items())]
    return row


@pytest.mark.parametrize("model", ["tiny_xglm", "tiny_bloom"])
def test_copies_align_and_unrelated_texts_do_not(
    model: str,
    write_parallel: Callable[..., str],
    request: pytest.FixtureRequest,
    tiny_snapshot: Callable[..., Snapshot],
) -> None:
    rows = list(_alignment(write_parallel()).measure(tiny_snapshot(request.getfixturevalue(model))))
    copies, unrelated = {"language": "aa", "other_language": "bb"}, {"language": "aa", "other_language": "cc"}
    for metric in ("cka_debiased", "mutual_knn", "mexa", "abx_meaning"):
        copy = _one(rows, metric, **copies)
        assert copy.value == pytest.approx(1.0, abs=1e-4)
        assert copy.p == pytest.approx(1 / 61)
        assert copy.low <= copy.value + 1e-6
        assert _one(rows, f"{metric}_calibrated", **copies).value == pytest.approx(1.0, abs=1e-3)
        other = _one(rows, metric, **unrelated)
        assert other.p > 0.01
        assert abs(other.value - other.chance) < 0.25
        assert _one(rows, f"{metric}_calibrated", **unrelated).value < 0.15
    assert _one(rows, "abx_language", **copies).value == 0.5


def test_means_and_numbers_of_rows(
    write_parallel: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    rows = list(_alignment(write_parallel(), measures=["cka_debiased", "mexa"]).measure(tiny_snapshot(tiny_xglm)))
    assert len(rows) == 2 * 2 * (3 + 3 + 1)
    for metric in ("cka_debiased", "mexa"):
        layers = [_one(rows, metric, layer=layer).value for layer in (-1, 0, 1)]
        pairs = [row.value for row in rows if row.metric == metric and row.language]
        assert _one(rows, metric).value == pytest.approx(np.mean(layers), abs=1e-6)
        assert _one(rows, metric).value == pytest.approx(np.mean(pairs), abs=1e-6)
    for row in rows:
        assert row.low is None or row.low <= row.value <= row.high


def test_the_best_of_several_layers_is_calibrated_by_the_best_of_the_nulls(
    write_parallel: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path, pair = write_parallel(languages="aa bb", copies=""), {"language": "aa", "other_language": "bb"}
    options = {"aggregate": "max", "measures": ["cka_debiased"]}
    rows = list(_alignment(path, **options).measure(tiny_snapshot(tiny_xglm)))
    best = _one(rows, "cka_debiased", **pair)
    layers = [_one(rows, "cka_debiased", layer=layer) for layer in (-1, 0, 1)]
    assert best.value == pytest.approx(max(row.value for row in layers))
    assert best.chance >= max(row.chance for row in layers) - 1e-6


def test_rows_are_reproducible_and_layers_can_be_chosen(
    write_parallel: Callable[..., str], tiny_bloom: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path, snapshot = write_parallel(), tiny_snapshot(tiny_bloom)
    rows = list(_alignment(path).measure(snapshot))
    assert rows == list(_alignment(path).measure(snapshot))
    chosen = list(_alignment(path, layers=[0]).measure(snapshot))
    assert {row.layer for row in chosen} == {0, None}
    assert _one(chosen, "mutual_knn", layer=0) == _one(rows, "mutual_knn", layer=0)


def test_centring_removes_what_tells_languages_apart(
    write_parallel: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable, tmp_path: Path
) -> None:
    """The second language says the same with a long prefix: a constant shift, nearly."""
    path = Path(write_parallel(languages="aa"))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records += [record | {"language": "bb", "text": "XYZ" * 8 + record["text"]} for record in records]
    path.write_text("\n".join(map(json.dumps, records)))
    snapshot = tiny_snapshot(tiny_xglm)
    plain = list(_alignment(str(path), layers=[0]).measure(snapshot))
    centred = list(_alignment(str(path), layers=[0], centre=True).measure(snapshot))
    assert _one(plain, "abx_language").value > 0.9
    assert _one(centred, "abx_language").value < _one(plain, "abx_language").value - 0.2
    assert _one(plain, "cka_debiased").value == pytest.approx(_one(centred, "cka_debiased").value, abs=1e-4)


def test_sentences_are_those_that_all_languages_have() -> None:
    texts = {
        "aa": [Text("1", "a1"), Text("2", "a2"), Text("3", "a3")],
        "bb": [Text("3", "b3"), Text("1", "b1"), Text("9", "b9")],
    }
    chosen = choose_parallel(texts, 10)
    assert sorted(chosen["aa"]) == ["a1", "a3"]
    assert [text[1:] for text in chosen["aa"]] == [text[1:] for text in chosen["bb"]]
    assert len(choose_parallel(texts, 1)["aa"]) == 1
    with pytest.raises(ValueError, match="no text is there in all"):
        choose_parallel({"aa": texts["aa"], "bb": [Text("9", "b9")]}, 5)
    with pytest.raises(ValueError, match="two languages"):
        choose_parallel({"aa": texts["aa"]}, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, "pool='median'"),
        ({"aggregate": "sum"}, "aggregate='sum'"),
        ({"measures": ["rsa"]}, "rsa"),
        ({"permutations": 0}, "permutations"),
        ({"alpha": 0.0}, "alpha"),
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "zz"]}, "no language 'zz'"),
        ({"layers": [7]}, "no layer 7"),
        ({"num_texts": 5}, "must be at least 7"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object],
    message: str,
    write_parallel: Callable[..., str],
    tiny_xglm: PreTrainedModel,
    tiny_snapshot: Callable,
) -> None:
    with pytest.raises(ValueError, match=message):
        list(_alignment(write_parallel(), **options).measure(tiny_snapshot(tiny_xglm)))


def test_it_is_built_from_a_list_entry(write_parallel: Callable[..., str]) -> None:
    entry = {
        "class_path": "Alignment",
        "init_args": {"texts": write_parallel(), "layers": [0]},
    }
    (analysis,) = build_analyses([entry])
    assert analysis.name == "alignment"
