"""The suite of probes in a model: told apart, at chance, the right rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.probe_suite import ProbeSuite
from analysis.snapshots import Snapshot


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[[dict[str, str]], str]:
    def write(alphabets: dict[str, str]) -> str:
        path = tmp_path / "texts.jsonl"
        generator = np.random.default_rng(0)
        with path.open("w") as file:
            for language, alphabet in alphabets.items():
                for number in range(80):
                    text = "".join(generator.choice(list(alphabet), 16))
                    file.write(
                        json.dumps({"language": language, "uid": str(number), "split": "test", "text": text}) + "\n"
                    )
        return str(path)

    return write


def _suite(path: str, **options: object) -> ProbeSuite:
    defaults = {"splits": ["test"], "tokens_per_language": 300, "test_tokens_per_language": 150, "tokens_per_text": 6}
    return ProbeSuite(texts=path, **(defaults | options))  # type: ignore[arg-type]


def _one(rows: list[Row], metric: str, layer: int | None = None) -> Row:
    (row,) = [row for row in rows if (row.metric, row.layer) == (metric, layer)]
    return row


def test_every_probe_tells_scripts_apart(
    write_texts: Callable[[dict[str, str]], str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_texts({"aa": "abcdefghij", "bb": "KLMNOPQRST"})
    rows = list(_suite(path).measure(tiny_snapshot(tiny_xglm)))
    assert len(rows) == 3 * 4
    for layer in (-1, 0, 1, None):
        row = _one(rows, "accuracy_mlp", layer)
        assert row.value > 0.95
        assert row.chance == 0.5
        assert row.low <= row.value <= row.high
        assert _one(rows, "compression_mdl", layer).value > 3


def test_the_same_language_twice_is_at_chance(
    write_texts: Callable[[dict[str, str]], str], tiny_bloom: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path = write_texts({"aa": "abcdefghij", "bb": "abcdefghij"})
    rows = list(_suite(path, tokens_per_text=3).measure(tiny_snapshot(tiny_bloom)))
    assert abs(_one(rows, "accuracy_mlp").value - 0.5) < 0.1
    for layer in (-1, 0, 1, None):
        code = _one(rows, "compression_mdl", layer)
        assert code.chance < 0.97, "an online probe over-fits: labels that say nothing are sent at a loss"
        assert abs(code.value - code.chance) < 0.05
    control = _one(rows, "compression_mdl_control", -1)
    assert control.value > 2 > control.chance  # ten types with a label each are learnt at once
    assert rows == list(_suite(path, tokens_per_text=3).measure(tiny_snapshot(tiny_bloom)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ["svm"]}, "svm"),
        ({"probes": []}, "unknown probe"),
        ({"hidden_units": 0}, "hidden_units"),
        ({"layers": []}, r"probe_suite: layers=\[\] reads no layer"),
        ({"seeds": [0, -1]}, r"probe_suite: seeds=\[0, -1\] must be at least 0"),
        ({"languages": ["aa"]}, "one language"),
    ],
)
def test_bad_settings_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _suite("texts.jsonl", **options)


def test_it_is_built_from_a_list_entry(write_texts: Callable[[dict[str, str]], str]) -> None:
    entry = {
        "class_path": "ProbeSuite",
        "init_args": {"texts": write_texts({"aa": "a", "bb": "b"})},
    }
    (analysis,) = build_analyses([entry])
    assert analysis.name == "probe_suite"


def test_probes_of_equal_settings_read_the_states_of_a_snapshot_once(
    write_texts: Callable[[dict[str, str]], str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_texts({"aa": "abcdefghij", "bb": "KLMNOPQRST"})
    language = LanguageProbe(
        texts=path, splits=["test"], tokens_per_language=300, test_tokens_per_language=150, tokens_per_text=6
    )
    alone = list(_suite(path).measure(tiny_snapshot(tiny_xglm)))
    passes = []
    handle = tiny_xglm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        snapshot = tiny_snapshot(tiny_xglm)
        list(language.measure(snapshot))
        once = len(passes)
        assert list(_suite(path).measure(snapshot)) == alone
        assert len(passes) == once
        list(_suite(path, tokens_per_text=5).measure(snapshot))
        assert len(passes) > once
        # Held by nobody once it takes more than half of what the user allows.
        tight = tiny_snapshot(tiny_xglm)
        rows = list(_suite(path, max_bytes=3 * 3 * 990 * tiny_xglm.config.hidden_size * 4).measure(tight))
        assert rows == alone
        assert not any(kept for key, kept in tight.shared.items() if key[0] == "states")
    finally:
        handle.remove()
