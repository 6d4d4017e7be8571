"""Steps and tokens out of every naming scheme that a supported suite uses."""

from __future__ import annotations

import pytest

from analysis.checkpoints.names import Naming, select_steps, summarize_steps


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step1000", 1000),
        ("global_step600000", 600_000),
        ("stage1-step-40000", 40_000),
        ("stage3-step-4720000", 4_720_000),
        ("lc-4k-to-32k-step-4000", 4000),
        ("step50000-tokens210B", 50_000),
        ("step2627139-tokens15T", 2_627_139),
        ("stage1-step120000-tokens252B", 120_000),
        ("checkpoint_0047000", 47_000),
        ("checkpoint-500", 500),
        ("iter_0001000", 1000),
        ("0", 0),
        ("64010", 64_010),
        ("step0", 0),
        ("step0400000", 400_000),
        ("step-001000-2BT", 1000),
        ("step_00000016", 16),
        ("hf_ckpt/step_0020", 20),
        ("main", None),
        ("it-SFT", None),
        ("hf_ckpt/16.78B", None),
        ("misstep12", None),
        ("v1.0", None),
    ],
)
def test_steps_are_read_from_names(name: str, step: int | None) -> None:
    assert Naming().step(name) == step


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("step50000-tokens210B", 210 * 10**9),
        ("step2627139-tokens15T", 15 * 10**12),
        ("step-001000-2BT", 2 * 10**9),
        ("hf_ckpt/16.78B", 16_780_000_000),
        ("step500-tokens1.5M", 1_500_000),
        ("global_step1000", None),
        ("step0", 0),
    ],
)
def test_tokens_are_read_from_names(name: str, tokens: int | None) -> None:
    assert Naming().tokens(name, Naming().step(name) or 0 if "step" in name else 7) == tokens


def test_tokens_per_step_wins_over_the_rounded_count_in_the_name() -> None:
    assert Naming(tokens_per_step=4_194_304).tokens("step50000-tokens210B", 50_000) == 209_715_200_000


def test_a_name_with_tokens_only_gets_its_step_from_the_batch_size() -> None:
    assert Naming(tokens_per_step=8_388_608).step("hf_ckpt/16.78B") == 2000


def test_patterns_can_be_overridden() -> None:
    naming = Naming(step_pattern=r"epoch(\d+)", tokens_pattern=r"seen(\d+)([KMBT])")
    assert naming.step("model-epoch12-seen3M") == 12
    assert naming.tokens("model-epoch12-seen3M", 12) == 3_000_000
    assert naming.step("step5") is None


@pytest.mark.parametrize("options", [{"step_pattern": "step("}, {"step_pattern": "step"}, {"tokens_per_step": 0}])
def test_a_useless_naming_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Naming(**options)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ("all", [0, 1, 2, 4, 100]),
        ("last", [100]),
        ("first,last", [0, 100]),
        (2, [2]),
        ([4, 1], [1, 4]),
        ("1:4", [1, 2, 4]),
        (":2", [0, 1, 2]),
        ("3:", [4, 100]),
        ("0, 4:", [0, 4, 100]),
    ],
)
def test_steps_are_selected(selection: int | list[int] | str, chosen: list[int]) -> None:
    assert select_steps([100, 4, 2, 1, 0], selection) == chosen


@pytest.mark.parametrize("selection", [3, "5:50", "middle", [1, 7]])
def test_a_selection_of_nothing_is_refused(selection: int | list[int] | str) -> None:
    with pytest.raises(ValueError, match="steps '"):
        select_steps([0, 1, 2, 4, 100], selection)


def test_long_lists_are_shortened_in_messages() -> None:
    assert summarize_steps(list(range(100)), most=4) == "0, 1 ... 98, 99 (100 in all)"
