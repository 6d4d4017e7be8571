"""Steps and tokens out of every naming scheme that a supported suite uses."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from analysis.checkpoints.names import BatchRamp, Naming, select_steps, summarize_steps

SUITES = Path(__file__).parents[3] / "configs" / "suites"


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


def suite_naming(suite: str) -> Naming:
    """The naming of a shipped suite; BLOOM's sizes stand in overlays."""
    options = yaml.safe_load((SUITES / f"{suite}.yaml").read_text())["source"]["init_args"].get("naming", {})
    ramp = options.pop("ramp", None)
    return Naming(**options, ramp=BatchRamp(**ramp) if ramp else None)


PUBLISHED = {
    "bloom_560m": {
        "global_step1000": (1000, 393_216_000),
        "global_step10000": (10_000, 3_932_160_000),
        "global_step100000": (100_000, 47_666_823_168),
        "bigscience/bloom-560m": (659_500, 341_005_959_168),
    },
    "bloom_1b1": {"global_step1000": (1000, 393_216_000), "global_step600000": (600_000, 310_704_603_136)},
    "bloom_1b7": {"global_step10000": (10_000, 4_469_161_984), "global_step300000": (300_000, 302_336_507_904)},
    "bloom_3b": {"global_step1000": (1000, 393_216_000), "global_step50000": (50_000, 39_311_638_528)},
    "bloom_7b1": {"global_step1000": (1000, 393_216_000), "global_step10000": (10_000, 4_290_379_776)},
    "pythia_160m": {
        "step0": (0, 0),
        "step1": (1, 2_097_152),
        "step512": (512, 1_073_741_824),
        "step143000": (143_000, 299_892_736_000),
    },
    "smollm3": {
        "stage1-step-40000": (40_000, 94_371_840_000),
        "stage2-step-4200000": (4_200_000, 9_909_043_200_000),
        "stage3-step-4720000": (4_720_000, 11_135_877_120_000),
    },
    "apertus": {
        "step50000-tokens210B": (50_000, 210 * 10**9),
        "step1432000-tokens6014B": (1_432_000, 6014 * 10**9),
        "step2627139-tokens15T": (2_627_139, 15 * 10**12),
    },
    "olmo2_1b": {
        "stage1-step0-tokens0B": (0, 0),
        "stage1-step10000-tokens21B": (10_000, 21 * 10**9),
        "stage1-step120000-tokens252B": (120_000, 252 * 10**9),
    },
    "olmo3_7b": {"stage1-step0": (0, 0), "stage1-step141000": (141_000, 591_396_864_000)},
    "bgpt": {
        "0": (0, 0),
        "10000": (10_000, 937_500_000),
        "64000": (64_000, 6_000_000_000),
        "64010": (64_010, 6_000_937_500),
        "64300": (64_300, 6_028_125_000),
        "128000": (128_000, 12_000_000_000),
    },
    "prelude": {
        "iter_0002400": (2400, 20_132_659_200),
        "iter_0012000": (12_000, 100_663_296_000),
        "iter_0648000": (648_000, 5_435_817_984_000),
    },
    "datamix_2b": {"iter_0002000": (2000, 8_388_608_000), "iter_0953675": (953_675, 4_000_002_867_200)},
    "lucie_7b": {"step0005000": (5000, 5_700_059_136), "step0753851": (753_851, 3_121_742_086_144)},
    "poro_34b": {"100B": (23_842, 100_000_595_968), "1000B": (238_419, 1_000_001_765_376)},
    "croissant_1b": {
        "croissantllm/base_5k": (5000, 78_643_200_000),
        "croissantllm/base_185k": (185_000, 2_909_798_400_000),
    },
    "hplt_deu": {
        "checkpoint_0001000": (1000, 2_097_152_000),
        "checkpoint_0047000": (47_000, 98_566_144_000),
    },
}
"""Suite -> published name -> exact (step, tokens). Names of repositories tell no step; there the config does."""


def test_the_table_of_published_names_is_large_enough() -> None:
    assert len(PUBLISHED) >= 15
    assert sum(map(len, PUBLISHED.values())) >= 45


@pytest.mark.parametrize("suite", PUBLISHED)
def test_published_names_give_exact_steps_and_tokens_without_collision(suite: str) -> None:
    naming = suite_naming(suite)
    for name, (step, tokens) in PUBLISHED[suite].items():
        assert "/" in name or naming.step(name) == step, name
        assert naming.tokens(name, step) == tokens, name
    assert len(set(PUBLISHED[suite].values())) == len(PUBLISHED[suite])


@pytest.mark.parametrize("names", [[f"chck_{n}M" for n in (*range(1, 10), *range(10, 101, 10))]])
def test_names_that_count_words_alone_keep_their_order(names: list[str]) -> None:
    naming = suite_naming("babylm_en_zh")
    assert [naming.step(name) for name in names] == [*range(1, 10), *range(10, 101, 10)]
    assert naming.tokens("chck_10M", 10) is None
    assert Naming(counts="words", tokens_per_word=1.5).tokens("chck_10M", 10) == 15_000_000
    assert Naming().step("chck_10M") is None


def counted_one_by_one(ramp: BatchRamp, steps: int) -> list[int]:
    """Tokens after every step, as the trainer counts them: the batch follows the samples seen before it."""
    seen, stages, tokens = 0, (ramp.batch - ramp.start) // ramp.increment, [0]
    for _ in range(steps):
        stage = min(stages, seen * stages // ramp.samples)
        seen += ramp.start + stage * ramp.increment
        tokens.append(seen * ramp.sequence_length)
    return tokens


@pytest.mark.parametrize("seed", range(60))
def test_a_ramp_equals_counting_batch_by_batch(seed: int) -> None:
    draw = random.Random(seed)
    start, increment = draw.randint(1, 20), draw.randint(1, 9)
    ramp = BatchRamp(
        start=start,
        increment=increment,
        samples=draw.randint(1, 5000),
        batch=start + increment * draw.randint(1, 12),
        sequence_length=draw.randint(1, 4),
    )
    counted = counted_one_by_one(ramp, 400)
    assert [ramp.tokens(step) for step in range(401)] == counted
    assert [ramp.step(tokens) for tokens in counted] == list(range(401))
    assert all(before < after for before, after in pairwise(counted))


@pytest.mark.parametrize(
    "options",
    [
        {"tokens_per_step": 2, "ramp": BatchRamp(start=1, increment=1, samples=9, batch=2, sequence_length=1)},
        {"tokens_per_word": 1.3},
        {"counts": "words", "tokens_per_word": float("nan")},
    ],
)
def test_contradicting_namings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="tokens_per"):
        Naming(**options)


@pytest.mark.parametrize("broken", [{"batch": 200}, {"batch": 100}, {"samples": 0}, {"increment": 0}])
def test_a_ramp_that_never_arrives_is_refused(broken: dict) -> None:
    good = {"start": 192, "increment": 32, "samples": 1000, "batch": 256, "sequence_length": 2048}
    with pytest.raises(ValueError, match=r"naming\.ramp"):
        BatchRamp(**(good | broken))
