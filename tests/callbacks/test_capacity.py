"""The capacity experiment: what is skipped, what goes on, what is named, and whether the verdict follows the data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.base import Row
from analysis.report.capacity.figures import seed_interval
from analysis.report.capacity.page import find_trends, verdict, write_capacity_report
from analysis.report.capacity.runs import CapacityRun, common_loss, read_family
from analysis.report.run import read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId
from callbacks import capacity
from callbacks.capacity import main, run, train_members
from callbacks.family import Family, Member, Step
from callbacks.snapshots import WEIGHTS_FILE, snapshot_folder

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d64": 64, "d128": 128, "d256": 256, "d512": 512}
STEPS = 8

# Stands in for a training: copies a prepared run folder into place, and writes down what it was given.
STAND_IN = """
import os, shutil, signal, sys, time
staged, folder, mode = sys.argv[1:4]
print("device", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if mode == "fail":
    sys.exit("error: the text of this run is missing")
if mode == "wait":
    def stop(*_):
        open(folder + ".stopped", "w").close()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    os.makedirs(folder, exist_ok=True)
    time.sleep(60)
shutil.copytree(staged, folder, dirs_exist_ok=True)
"""


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Two sizes and two seeds of a configuration that is never really trained here."""
    listed = tmp_path / "analyses.yaml"
    overlap = {"class_path": "ConceptOverlap", "init_args": {"concepts": "none.parquet"}}
    loss = {"class_path": "HeldOutLoss", "init_args": {"texts": "none.parquet"}}
    listed.write_text(yaml.safe_dump({"analyses": [overlap, loss]}))
    live = {"class_path": "callbacks.analyses.AnalysisCallback", "init_args": {"analyses": str(listed)}}
    base, above = tmp_path / "base.yaml", tmp_path / "above.yaml"
    base.write_text(yaml.safe_dump({"model": {"d_model": 8, "vocab_size": 99}, "trainer": {"max_steps": 2}}))
    above.write_text(yaml.safe_dump({"trainer": {"max_steps": STEPS, "callbacks": [live]}}))
    sizes = {size: {"model.d_model": SIZES[size]} for size in ("d64", "d128")}
    return Family("tiny", [str(base), str(above)], sizes, [1, 2], folder=str(tmp_path / "runs"))


def write_run(member: Member, folder: Path, *, rise: float, loss: float, measured: bool = True) -> None:
    """A run folder as training leaves it, sharing `rise` more than its untrained network."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": {"d_model": SIZES[member.size]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for step in (0, STEPS):
        snapshot = snapshot_folder(folder, step)
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / WEIGHTS_FILE).write_bytes(b"")
        info = {"run": member.name, "step": step, "tokens": step, "data_fingerprint": None, "weights_sha256": "0"}
        (snapshot / "snapshot.json").write_text(json.dumps({**info, "dtype": "float32"}))
    if not measured:
        return
    table = ResultTable(folder / "results")
    overlap, held_out = member.analyses()
    for step in (0, STEPS // 2, STEPS):
        here = SnapshotId(member.name, step, step * 100)
        level = 0.05 + rise * step / STEPS
        rows = [Row(metric="shared", value=level, chance=0.01, low=level - 0.01, high=level + 0.01)]
        rows += [
            Row(metric="shared", value=level + 0.002 * ((5 * i) % 3 - 1), concept=f"c{i}", chance=0.01)
            for i in range(6)
        ]
        rows.append(Row(metric="kappa", value=(level - 0.01) / 0.99, chance=0.0))
        table.write(here, overlap, rows, seconds=0.1)
        bits = 8.0 + (loss - 8.0) * step / STEPS
        table.write(here, held_out, [Row(metric="bits_per_byte", value=bits)], seconds=0.1)


def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modes: dict[str, str] | None = None) -> list[str]:
    """Replace training and measuring by the stand-in; returns the names of the runs as they are started."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    started: list[str] = []
    real = {"train": Member.train_command, "measure": Member.measure_command}

    def replaced(kind: str) -> Callable[[Member], list[str]]:
        def command(member: Member) -> list[str]:
            assert real[kind](member)[:3] == [sys.executable, "-m", "train" if kind == "train" else "analysis"]
            started.append(f"{kind} {member.name}")
            mode = (modes or {}).get(member.name, "work") if kind == "train" else "work"
            staged = tmp_path / "staged" / (f"{mode}-{member.name}" if mode == "unmeasured" else member.name)
            write_run(member, staged, rise=0.02, loss=4.0, measured=mode != "unmeasured")
            return [sys.executable, str(script), str(staged), str(member.folder), mode]

        return command

    monkeypatch.setattr(Member, "train_command", replaced("train"))
    monkeypatch.setattr(Member, "measure_command", replaced("measure"))
    monkeypatch.setattr(capacity, "make_ready", lambda family: None)
    return started


# what a run is given and how far it is -------------------------------------------------------------------------------


def test_a_run_gets_the_common_configuration_then_its_size_and_its_seed(family: Family) -> None:
    member = Member(family, "d128", 2)
    assert member.arguments() == [
        *("--config", family.configs[0], "--config", family.configs[1]),
        "--model.d_model=128",
        "--seed_everything=2",
        "--data.seed=2",
        f"--trainer.default_root_dir={family.folder / 'tiny-d128-s2'}",
    ]
    assert member.settings["model"] == {"d_model": 128, "vocab_size": 99}
    assert member.max_steps == STEPS


def test_all_sizes_of_a_seed_come_before_the_next_seed(family: Family) -> None:
    assert [m.name for m in family.members()] == ["tiny-d64-s1", "tiny-d128-s1", "tiny-d64-s2", "tiny-d128-s2"]


def test_the_state_of_a_run_is_read_from_its_folder(family: Family) -> None:
    member = Member(family, "d64", 1)
    assert member.state() == "new"
    member.folder.mkdir(parents=True)
    (member.folder / "config.yaml").write_text("{}")
    assert member.state() == "interrupted"
    write_run(member, member.folder, rise=0.0, loss=4.0, measured=False)
    assert member.state() == "unmeasured"
    write_run(member, member.folder, rise=0.0, loss=4.0)
    assert member.state() == "finished"
    listed = Path(member.analyses_file)
    listed.write_text(listed.read_text().replace("none.parquet", "other.parquet"))
    assert member.state() == "unmeasured"  # results of other settings are stale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"jobs": 0}, "at least 1"),
        ({"jobs": 2, "gpus": [0]}, "gpus names 1"),
        ({"sizes": {"d64": {"data.seed": 3}}}, "d64 sets data.seed"),
    ],
)
def test_families_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    given = {"name": "x", "configs": ["a.yaml"], "sizes": {"d64": {}}, "seeds": [1], **options}
    with pytest.raises(ValueError, match=message):
        Family(**given)


def test_a_configuration_without_live_analyses_is_refused(family: Family, tmp_path: Path) -> None:
    (tmp_path / "above.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": STEPS}}))
    with pytest.raises(ValueError, match=r"no callbacks\.analyses\.AnalysisCallback"):
        Member(family, "d64", 1).analyses()


# running -------------------------------------------------------------------------------------------------------------


def test_finished_runs_are_skipped_and_interrupted_ones_go_on(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = family.members()
    write_run(members[0], members[0].folder, rise=0.02, loss=4.0)
    members[1].folder.mkdir(parents=True)
    (members[1].folder / "config.yaml").write_text("{}")
    started = stage(monkeypatch, tmp_path)
    assert train_members(members) == {}
    assert started == [f"train {member.name}" for member in members[1:]]
    assert {member.state() for member in members} == {"finished"}


def test_a_failed_run_is_named_and_the_others_go_on(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(monkeypatch, tmp_path, {"tiny-d128-s1": "fail"})
    assert run(family) == 1
    said = capsys.readouterr().out
    assert "tiny-d128-s1: exit code 1: error: the text of this run is missing" in " ".join(said.split())
    assert [member.state() for member in family.members()] == ["finished", "new", "finished", "finished"]
    page = family.report.read_text(encoding="utf-8")
    assert "Too few runs to tell" in said
    assert "tiny-d64-s2" in page
    assert "tiny-d128-s1" not in page


def test_what_the_training_left_unmeasured_is_measured_afterwards(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = stage(monkeypatch, tmp_path, {"tiny-d64-s1": "unmeasured"})
    assert train_members(family.members()[:1]) == {}
    assert started == ["train tiny-d64-s1", "measure tiny-d64-s1"]


def test_jobs_get_a_device_each(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch, tmp_path)
    members = family.members()[:2]
    assert train_members(members, jobs=2, gpus=[5, 7]) == {}
    assert [member.log.read_text().split() for member in members] == [["device", "5"], ["device", "7"]]


def test_a_signal_reaches_the_running_ones_once_and_ends_the_command(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(monkeypatch, tmp_path, {"tiny-d64-s1": "wait"})
    member = family.members()[0]

    def sleep(seconds: float) -> None:
        if member.folder.exists():  # the stand-in listens from now on
            raise capacity.Stopped(15)

    monkeypatch.setattr(capacity.time, "sleep", sleep)
    with pytest.raises(capacity.Stopped):
        train_members([member])
    assert Path(f"{member.folder}.stopped").is_file()


def test_what_comes_before_is_made_once(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_text("")
    family.before = (Step(makes=str(tmp_path / "there"), run=["a"]), Step(makes=str(tmp_path / "not"), run=["b", "c"]))
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(capacity, "_once", lambda family, name, arguments: commands.append(arguments))
    capacity.make_ready(family)
    configs = [part for config in family.configs for part in ("--config", config)]
    assert commands == [["b", "c"], ["train", "prepare", *configs]]


def test_bad_options_are_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--name=x", "--configs=[nowhere.yaml]", "--sizes={d64: {}}", "--seeds=[1]", f"--folder={tmp_path}"]
    assert main([*given, "--report_only"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "error: nowhere.yaml: no such configuration; see `configs` of the family"


# the comparison ------------------------------------------------------------------------------------------------------


def planted(
    family: Family, rise: Callable[[int, int], float], seeds: Sequence[int] = (1, 2, 3)
) -> list[tuple[str, int, Path]]:
    """Finished runs of four sizes; `rise(width, seed)` is what sharing gains."""
    members = [Member(family, size, seed) for seed in seeds for size in SIZES]
    family.sizes = {size: {"model.d_model": width} for size, width in SIZES.items()}
    for member in members:
        width = SIZES[member.size]
        write_run(member, member.folder, rise=rise(width, member.seed), loss=5.0 - 0.2 * np.log2(width / 64))
    return [(member.size, member.seed, member.folder) for member in members]


def sentence(members: Sequence[tuple[str, int, Path]]) -> str:
    runs = read_family(members)
    return verdict(find_trends(runs)["rise"][1], runs)


def test_a_planted_fall_with_capacity_is_found_and_shown(family: Family, tmp_path: Path) -> None:
    members = planted(family, lambda width, seed: 0.05 - 0.00005 * width + 0.001 * seed)
    assert sentence(members).startswith("Sharing rises more in smaller models (4 sizes, 3 seeds, 12 runs;")
    out = tmp_path / "report.html"
    _, sizes, trends = write_capacity_report(members, out, "planted")
    page = out.read_text(encoding="utf-8")
    assert "as the compression hypothesis predicts" in page
    assert [row[:3] for row in sizes.rows] == [(size, str(width), "3") for size, width in SIZES.items()]
    assert "effective rank / width" not in sizes.header  # nothing of the kind was measured
    assert float(trends.rows[0][2]) < -0.95
    assert trends.rows[0][3] == f"{2 / 24**3:.4f}"  # only this order and its reverse are as far out


def test_a_planted_rise_with_capacity_counts_against_the_hypothesis(family: Family) -> None:
    assert "against the compression hypothesis" in sentence(planted(family, lambda width, seed: 0.0001 * width))


def test_noise_is_called_no_trend(family: Family) -> None:
    noise = dict(zip(range(12), np.random.default_rng(3).permutation(12), strict=True))
    numbers = iter(noise.values())
    assert sentence(planted(family, lambda width, seed: 0.01 + 0.001 * next(numbers))).startswith("No trend of sharing")


def test_one_seed_is_called_too_little(family: Family) -> None:
    said = sentence(planted(family, lambda width, seed: 0.05 - 0.00005 * width, seeds=(1,)))
    assert said.startswith("Too few runs to tell (4 sizes, 1 seed, 4 runs)")


def test_rise_is_read_at_the_loss_that_all_runs_reached(family: Family) -> None:
    runs = read_family(planted(family, lambda width, seed: 0.04))
    loss = common_loss(runs)
    assert loss == pytest.approx(5.0)
    # Loss falls and sharing rises on a straight line, so d512 (from 8 to 4.4) is at 3 / 3.6 of its rise there.
    assert runs[-1].rise_at_loss(5.0) == pytest.approx(0.04 / 0.99 * 3.0 / 3.6)
    assert runs[0].rise_at_loss(5.0) == pytest.approx(0.04 / 0.99)
    assert runs[0].rise_at_loss(1.0) is None


def test_the_rise_is_corrected_for_chance(family: Family) -> None:
    run = read_family(planted(family, lambda width, seed: 0.02, seeds=(1,)))[0]
    assert run.rise == pytest.approx(0.02 / 0.99)
    assert run.overall("ConceptOverlap", "kappa") == pytest.approx(0.06 / 0.99)


def test_loss_among_seeds_is_asked_apart_from_loss_among_widths(family: Family) -> None:
    # Rise and loss both fall with width, but among the seeds of a width the losses are all the same.
    trends = find_trends(read_family(planted(family, lambda width, seed: 0.05 - 0.00005 * width + 0.001 * seed)))
    assert trends["rise_by_loss"][1].correlation == 0.0
    assert trends["rise_by_loss"][1].p == 1.0
    assert trends["loss"][1].correlation == pytest.approx(-1.0)


def test_two_sizes_of_one_width_are_refused(family: Family) -> None:
    members = planted(family, lambda width, seed: 0.02, seeds=(1,))
    with pytest.raises(ValueError, match="both have d_model 64"):
        read_family([*members, ("also64", 2, members[0][2])])


def test_no_finished_run_is_one_line(family: Family, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        write_capacity_report([], tmp_path / "x.html", "x")


def test_seed_intervals_are_those_of_student() -> None:
    assert seed_interval([1.0]) is None
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


# what is shipped -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "cpu", "full"])
def test_shipped_families_parse_and_train_what_they_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.cli import ParsedRun

    monkeypatch.chdir(ROOT)
    options = yaml.safe_load((ROOT / "configs" / "capacity" / f"{name}.yaml").read_text(encoding="utf-8"))
    options["before"] = [Step(**step) for step in options["before"]]
    family = Family(**options)
    assert len(family.seeds) >= 3
    made = {step.makes for step in family.before}
    for size in family.sizes:
        member = Member(family, size, family.seeds[0])
        assert member.settings["model"]["ffn_dim"] == 8 * member.settings["model"]["d_model"]
        overlap = next(analysis for analysis in member.analyses() if analysis.name == "overlap")
        assert overlap.concepts in made  # type: ignore[attr-defined]
        assert overlap.share is not None  # type: ignore[attr-defined]
        assert made <= set(member.settings["data"]["exclude"])
    parsed = ParsedRun(["fit", *member.arguments()]).run
    assert parsed.model.d_model == member.settings["model"]["d_model"]
    assert (parsed.seed_everything, parsed.data.seed) == (1, 1)
    assert parsed.trainer.max_steps == member.max_steps


@pytest.mark.slow
def test_a_real_family_trains_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base = yaml.safe_load((ROOT / "configs" / "capacity" / "base.yaml").read_text(encoding="utf-8"))
    concepts = tmp_path / "concepts.parquet"
    analyses = tmp_path / "analyses.yaml"
    listed = yaml.safe_load((ROOT / "configs" / "capacity" / "analyses.yaml").read_text(encoding="utf-8"))["analyses"]
    listed[0]["init_args"] |= {"max_texts": 8}
    listed[1]["init_args"] |= {"concepts": str(concepts), "halves": False, "surface": False}
    analyses.write_text(yaml.safe_dump({"analyses": listed[:2]}))
    base["model"] |= {"vocab_size": 512, "num_layers": 1, "optimizer": {"lr": 1.0e-3, "warmup_steps": 1}}
    base["data"] |= {"vocab_size": 512, "tokenizer": str(tmp_path / "tokenizer"), "cache": str(tmp_path / "cache")}
    base["data"] |= {"languages": ["de", "en"], "exclude": [str(concepts)], "block_size": 32, "batch_size": 4}
    base["trainer"] |= {"max_steps": 4, "accelerator": "cpu"}
    base["trainer"]["callbacks"][2]["init_args"]["analyses"] = str(analyses)
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump(base))
    label = ["analysis", "label", "--texts", "data/embedded_cdda10.parquet", "--out", str(concepts)]
    label += ["--languages", "de", "en", "--max_concepts", "3", "--min_positives", "20", "--cap", "20"]
    family = Family(
        "real",
        [str(config)],
        {f"d{d}": {"model.d_model": d, "model.attention_heads": 2, "model.ffn_dim": 8 * d} for d in (16, 32)},
        [1],
        folder=str(tmp_path / "runs"),
        before=[Step(makes=str(concepts), run=label)],
    )
    assert run(family) == 0
    assert {member.state() for member in family.members()} == {"finished"}
    runs = [CapacityRun(m.size, m.seed, read_run(m.folder)) for m in family.members()]
    assert [one.num_units for one in runs] == [4 * 16 + 128 + 16, 4 * 32 + 256 + 32]
    assert [one.parameters is not None and one.parameters[1] < one.parameters[0] for one in runs] == [True, True]
    assert "Too few runs to tell" in family.report.read_text(encoding="utf-8")
    before = family.members()[0].log.stat().st_mtime_ns
    assert run(family) == 0
    assert family.members()[0].log.stat().st_mtime_ns == before  # nothing was trained again
