"""The language probe on planted truth: told apart where it must be, at chance where nothing is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.language_probe import LanguageProbe
from analysis.snapshots import Snapshot

LOWER, UPPER = "abcdefghij", "KLMNOPQRST"


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., str]:
    """Random words over an alphabet per language, with the same keys in all of them."""

    def write(
        alphabets: dict[str, str], count: int = 60, length: int = 24, splits: Sequence[str] = ("valid", "train")
    ) -> str:
        path = tmp_path / "texts.jsonl"
        generator = np.random.default_rng(0)
        with path.open("w") as file:
            for language, alphabet in alphabets.items():
                for number in range(count * len(splits)):
                    text = "".join(generator.choice(list(alphabet), length))
                    record = {
                        "language": language,
                        "uid": f"k{number}",
                        "text": text,
                        "split": splits[number % len(splits)],
                    }
                    file.write(json.dumps(record) + "\n")
        return str(path)

    return write


def _probe(path: str, **options: object) -> LanguageProbe:
    defaults = {"splits": ["valid"], "tokens_per_language": 300, "test_tokens_per_language": 150}
    return LanguageProbe(texts=path, **(defaults | options))  # type: ignore[arg-type]


def _rows(rows: Sequence[Row], metric: str, **fields: object) -> list[Row]:
    return [row for row in rows if row.metric == metric and all(getattr(row, k) == v for k, v in fields.items())]


def test_languages_with_disjoint_scripts_are_told_apart(
    write_texts: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    rows = list(_probe(write_texts({"aa": LOWER, "bb": UPPER})).measure(tiny_snapshot(tiny_xglm)))
    for layer in (-1, 0, 1):
        (mean,) = _rows(rows, "accuracy", layer=layer, seed=None)
        assert mean.value > 0.97
        assert mean.low <= mean.value <= mean.high
        assert mean.chance == pytest.approx(0.5)
        by_seed = _rows(rows, "accuracy", layer=layer)
        assert sorted(row.seed for row in by_seed if row.seed is not None) == [0, 1, 2]
        assert mean.value == pytest.approx(np.mean([row.value for row in by_seed if row.seed is not None]))
        (information,) = _rows(rows, "information", layer=layer)
        assert 0.9 < information.value <= 1.0  # one bit tells two languages apart
        (shuffled,) = _rows(rows, "accuracy_shuffled", layer=layer)
        assert abs(shuffled.value - 0.5) < 0.2
        assert len(_rows(rows, "recall", layer=layer)) == 2
        (own,) = _rows(rows, "confusion", layer=layer, language="aa", other_language="aa")
        (other,) = _rows(rows, "confusion", layer=layer, language="aa", other_language="bb")
        assert own.value + other.value == pytest.approx(1)
    (identity,) = _rows(rows, "accuracy_token_identity")
    assert identity.value == 1.0
    assert not _rows(rows, "accuracy_shared")


def test_the_same_language_twice_is_at_chance(
    write_texts: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path = write_texts({"aa": LOWER, "bb": LOWER, "cc": LOWER}, count=250)
    rows = list(_probe(path, seeds=[0, 1, 2, 3], tokens_per_text=2).measure(tiny_snapshot(tiny_xglm)))
    for row in _rows(rows, "accuracy", seed=None) + _rows(rows, "accuracy_shared"):
        assert row.chance == pytest.approx(1 / 3, abs=0.02)
        # 450 test tokens a seed, two of one text: with four overlapping seeds a standard error of about 0.017.
        assert abs(row.value - 1 / 3) < 0.07
    assert abs(_rows(rows, "accuracy_token_identity")[0].value - 1 / 3) < 0.07
    assert all(row.value < 0.05 for row in _rows(rows, "information"))


def test_test_texts_of_the_training_split_do_not_tell_the_language_of_their_own_tokens(
    tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    """Every text has a letter that no other has: unseen, it says nothing."""
    lines = [
        {"language": language, "uid": f"k{key}", "split": "train", "text": chr(33 + 2 * key + number) * 24}
        for key in range(40)
        for number, language in enumerate(("aa", "bb"))
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    probe = _probe(str(path), splits=["train"], seeds=[0, 1], controls=False)
    (identity,) = _rows(list(probe.measure(tiny_snapshot(tiny_xglm))), "accuracy_token_identity")
    assert identity.value == 0.5


def test_shared_tokens_are_harder_than_the_rest(
    write_texts: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path = write_texts({"aa": "abcdefxyz", "bb": "KLMNOPxyz"}, count=80)
    rows = list(_probe(path).measure(tiny_snapshot(tiny_xglm)))
    (everything,) = _rows(rows, "accuracy", layer=-1, seed=None)
    (shared,) = _rows(rows, "accuracy_shared", layer=-1)
    assert everything.value > shared.value + 0.1
    assert abs(shared.value - 0.5) < 0.1  # an embedding knows nothing of the context


def test_control_task_is_learnt_from_embeddings(
    write_texts: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    """Twenty token types in 32 dimensions: a random label per type is read off at once, so selectivity is near zero."""
    rows = list(_probe(write_texts({"aa": LOWER, "bb": UPPER})).measure(tiny_snapshot(tiny_xglm)))
    assert _rows(rows, "accuracy_control", layer=-1)[0].value > 0.95
    assert abs(_rows(rows, "selectivity", layer=-1)[0].value) < 0.05


def test_rows_are_reproducible_and_in_the_right_number(
    write_texts: Callable[..., str], tiny_bloom: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path = write_texts({"aa": LOWER, "bb": UPPER, "cc": "uvwxyz"})
    snapshot = tiny_snapshot(tiny_bloom)
    options = {"confusion_layers": [0], "seeds": [5]}
    rows = list(_probe(path, **options).measure(snapshot))
    assert rows == list(_probe(path, **options).measure(snapshot))
    assert len(_rows(rows, "confusion", layer=0)) == len(_rows(rows, "confusion", layer=None)) == 9
    assert {row.layer for row in _rows(rows, "recall")} == {-1, 0, 1, None}
    with pytest.raises(ValueError, match="no layer 7: the model has -1"):
        next(_probe(path, confusion_layers=[0, 7]).measure(snapshot))
    without = list(_probe(path, controls=False, **options).measure(snapshot))
    assert not _rows(without, "selectivity")
    assert _rows(without, "accuracy") == _rows(rows, "accuracy")


def test_it_is_built_from_a_list_entry(write_texts: Callable[..., str]) -> None:
    path = write_texts({"aa": LOWER, "bb": UPPER})
    entry = {
        "class_path": "LanguageProbe",
        "init_args": {"texts": path, "languages": ["aa", "bb"]},
    }
    (analysis,) = build_analyses([entry])
    assert analysis.name == "language_probe"
    assert analysis.settings()["texts"].startswith("sha256:")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["aa"]}, "one language"),
        ({"languages": ["aa", "xx"]}, "no language 'xx'"),
        ({"splits": ["test"]}, "no split 'test'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "different"),
        ({"seeds": [-1]}, r"language_probe: seeds=\[-1\] must be at least 0"),
        ({"tokens_per_language": 0}, "tokens_per_language=0"),
        ({"regularisation": 0.0}, "regularisation"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, object],
    message: str,
    write_texts: Callable[..., str],
    tiny_xglm: PreTrainedModel,
    tiny_snapshot: Callable,
) -> None:
    path = write_texts({"aa": LOWER, "bb": UPPER})
    with pytest.raises(ValueError, match=message):
        list(_probe(path, **options).measure(tiny_snapshot(tiny_xglm)))


def test_too_little_text_is_named(
    write_texts: Callable[..., str], tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    path = write_texts({"aa": LOWER, "bb": UPPER}, count=2, length=3)
    with pytest.raises(ValueError, match=r"'aa' has only \d+ \w+ tokens"):
        list(_probe(path).measure(tiny_snapshot(tiny_xglm)))
