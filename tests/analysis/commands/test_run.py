"""`python -m analysis run | checkpoints`: from a config file to a table, with one-line errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from analysis.__main__ import COMMANDS, main, make_parser
from analysis.commands.run import read_analyses
from analysis.results import ResultTable

ROOT = Path(__file__).parents[3]
SUITES = [path for path in sorted((ROOT / "configs" / "suites").glob("*.yaml")) if "repo:" in path.read_text()]


@pytest.fixture
def run(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    for step in (0, 1, 4):
        folder = tmp_path / "demo" / "snapshots" / f"step_{step:08d}"
        torch.manual_seed(step)
        BloomForCausalLM(BloomConfig(vocab_size=264, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        (folder / "snapshot.json").write_text(json.dumps({"run": "demo", "step": step, "tokens": 64 * step}))
    return tmp_path / "demo"


@pytest.fixture
def config(run: Path, tmp_path: Path) -> Path:
    lines = [
        {"language": "en", "split": split, "text": f"good day {i}"} for split in ("train", "valid") for i in range(3)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    analyses = [
        {
            "class_path": "HeldOutLoss",
            "init_args": {"texts": str(tmp_path / "texts.jsonl"), "num_bootstrap": 5},
        }
    ]
    source = {"class_path": "RunFolder", "init_args": {"path": str(run), "loading": {"device": "cpu"}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"source": source, "analyses": analyses, "executor": {"class_path": "Inline"}}))
    return path


def test_a_run_is_measured_into_its_own_folder(config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", str(config)]) == 0
    assert "demo: 3 checkpoints, 3 results measured now, 0 failures" in capsys.readouterr().out
    table = ResultTable(run / "results")
    assert list(table.entries()) == [(0, "held_out"), (1, "held_out"), (4, "held_out")]
    assert set(table.frame()["tokens"]) == {0, 64, 256}
    assert main(["run", "--config", str(config)]) == 0
    assert "0 results measured now" in capsys.readouterr().out


def test_a_list_that_does_not_fit_the_run_is_refused_before_a_checkpoint_is_opened(
    config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"languages": ["de"], "exclude": []}}))
    assert main(["run", "--config", str(config)]) == 2
    assert "held_out measures en, which the training text does not have" in capsys.readouterr().err
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"languages": ["de", "en"]}}))
    (tmp_path / "texts.jsonl").rename(tmp_path / "moved.jsonl")
    assert main(["run", "--config", str(config)]) == 2
    assert "texts.jsonl does not exist" in capsys.readouterr().err
    assert not (run / "results").exists()


def test_any_key_can_be_overridden(config: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    options = [
        "--steps",
        "1:",
        "--results",
        str(out),
        "--source.run",
        "other",
        "--executor",
        "Inline",
        "--executor.prefetch",
        "false",
    ]
    assert main(["run", "--config", str(config), *options]) == 0
    assert ResultTable(out).steps() == [1, 4]
    assert set(ResultTable(out).frame()["run"]) == {"other"}
    assert not (run / "results").exists()


def test_an_analysis_list_may_be_a_file(config: Path, tmp_path: Path, run: Path) -> None:
    listed = yaml.safe_load(config.read_text())
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"analyses": listed.pop("analyses")}))
    config.write_text(yaml.safe_dump(listed))
    assert main(["run", "--config", str(config), "--analyses", str(tmp_path / "list.yaml"), "--steps", "last"]) == 0
    assert ResultTable(run / "results").steps() == [4]


def test_a_dry_run_says_what_is_missing_and_measures_nothing(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--config", str(config), "--steps", "0"])
    capsys.readouterr()
    assert main(["run", "--config", str(config), "--dry_run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["demo step 1 (step_00000001): held_out", "demo step 4 (step_00000004): held_out"]
    assert ResultTable(run / "results").steps() == [0]


def test_a_checkpoint_that_fails_is_named_and_the_exit_code_says_so(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "snapshots" / "step_00000001" / "model.safetensors").unlink()
    assert main(["run", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "failed: demo step 1 (step_00000001): no weights in" in out
    assert ResultTable(run / "results").steps() == [0, 4]


def test_the_table_of_checkpoints_tells_duplicates(config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (run / "snapshots" / "step_00000000" / "model.safetensors").read_bytes()
    (run / "snapshots" / "step_00000004" / "model.safetensors").write_bytes(weights)
    main(["run", "--config", str(config)])
    capsys.readouterr()
    assert main(["checkpoints", "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "tokens", "name", "commit", "size", "cached", "results", "note"]
    assert "same weights as step 0" in lines[3]
    assert "same weights" not in lines[2]
    assert lines[4] == "demo: 3 checkpoints, 0.00 GB, 0 not on this machine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "77"], "steps '77': no such checkpoint; there are 0, 1, 4"),
        (["--source.path", "nowhere"], "nowhere: no folder 'snapshots'"),
        (["--analyses", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--source.loading.dtype", "float8"], "float8"),
        (["--executor", "Cloud"], "executor: there is no class 'Cloud'; choose Inline, ProcessPool, Submitit"),
        (["--source", "Folder"], "source: there is no class 'Folder'; choose HubRepositories, HubRevisions"),
        (["--source.naming.tokens_per_step", "x"], "source.naming.tokens_per_step: expected int or null, got x"),
        (["--steps", "[]"], "steps [] names no step"),
        (["--steps", ""], "names no step"),
        (["--split", "word"], "split: expected one of 'checkpoint', 'analysis', got word"),
        (["--bogus", "1"], "--bogus"),
        (["--source.random_baseline", "true"], "demo: has a step 0 of its own"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(config), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert message in error[0]
    assert not (run / "results").exists()


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        (None, "expected a list of analyses (class_path, init_args), got None"),
        ([], "expected a list of analyses (class_path, init_args), got []"),
        ("none.yaml", "none.yaml: no such file"),
        ([{"class_path": "Overlap"}], "analyses: there is no class 'Overlap'; choose "),
        ([{"class_path": "Alignment", "init_args": {"texts": "t", "num_texts": 1}}], "num_texts=1 must be at least"),
        ([{"class_path": "Alignment", "init_args": {"text": "t"}}], "analyses: Alignment: Option 'text' is not"),
        (
            [{"class_path": "LanguageProbe", "init_args": {"texts": "t", "regularisation": float("nan")}}],
            "language_probe: regularisation=nan must be finite",
        ),
    ],
)
def test_a_list_that_makes_no_sense_is_one_line_and_exit_code_2(
    analyses: object, message: str, config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {**yaml.safe_load(config.read_text()), "analyses": analyses}
    config.write_text(yaml.safe_dump(document))
    assert main(["run", "--config", str(config)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (run / "results").exists()


@pytest.mark.parametrize("option", ["--config", "--analyses"])
def test_nested_aliases_are_refused_before_they_are_read(
    option: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert main(["run", "--config", str(config), option, str(tmp_path / "bomb.yaml")]) == 2
    assert "bomb.yaml: not valid YAML: line 17: stands for more than 200,000 values" in capsys.readouterr().err


def test_a_source_that_cannot_be_opened_leaves_nothing_behind(config: Path, run: Path) -> None:
    for path in run.glob("snapshots/*/config.json"):
        path.write_text(path.read_text().replace('"n_layer": 1', '"n_layer": 10000000'))
    assert main(["run", "--config", str(config)]) == 1
    assert not (run / "results").exists()


def test_two_models_named_alike_do_not_share_results(
    config: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, step in (("A", 1), ("B", 4)):
        shutil.copytree(run / "snapshots" / f"step_{step:08d}", tmp_path / owner / "checkpoint-100")
    shutil.copytree(tmp_path / "A", tmp_path / "moved")
    options = [
        "run",
        "--results",
        str(tmp_path / "results"),
        "--source",
        "LocalFolder",
        "--source.loading.device",
        "cpu",
    ]
    options += ["--analyses", json.dumps(yaml.safe_load(config.read_text())["analyses"])]
    assert main([*options, "--source.path", str(tmp_path / "A" / "checkpoint-100")]) == 0
    assert ResultTable(tmp_path / "results").steps() == [100]
    assert main([*options, "--source.path", str(tmp_path / "moved" / "checkpoint-100")]) == 0
    assert main([*options, "--source.path", str(tmp_path / "B" / "checkpoint-100")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(tmp_path / "A" / "checkpoint-100") in error
    assert str(tmp_path / "B" / "checkpoint-100") in error


def test_the_traceback_is_an_option(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABELSCOPE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such checkpoint"):
        main(["run", "--config", str(config), "--steps", "77"])


def test_commands_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2
    assert main(["fly"]) == 2
    assert "error: unknown command 'fly'" in capsys.readouterr().err


HEAVY = ("torch", "transformers", "pandas", "numba", "plotly")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_waits_for_no_heavy_import_and_carries_the_commands_name(command: str) -> None:
    code = (
        "import sys; from analysis.__main__ import main\n"
        "try: main(sys.argv[1:] + ['--help'])\n"
        f"finally: print('imported', *(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["imported"]
    assert f"usage: python -m analysis {command}".strip() in done.stdout
    assert "_" not in command
    assert not re.search(r"--\w+-\w", done.stdout)  # one spelling of flags


def test_docstrings_of_options_are_their_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "run", "--source.help", "HubRevisions"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Hub id, e.g. bigscience/bloom-560m-intermediate." in " ".join(done.stdout.split())


def read_suite(path: Path) -> Namespace:
    """The options of a suite by the command that its own file gives, which names the file that it is an overlay of."""
    command = re.search(r"# +python -m analysis run (--config .*configs/suites/\S+)", path.read_text())
    assert command is not None, path
    parser = make_parser("run")
    return parser.instantiate(parser.parse_args(command[1].split()))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_shipped_suites_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = read_suite(path)
    assert [analysis.name for analysis in read_analyses(options.analyses)][:3] == [
        "held_out",
        "language_probe",
        "overlap",
    ]
    assert f"configs/suites/{path.name}" in path.read_text()
    assert options.source.repo.count("/") == 1


def test_the_bloom_configs_know_steps_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    small, large = (read_suite(ROOT / "configs" / "suites" / f"bloom_{size}.yaml").source for size in ("560m", "7b1"))
    assert [i.step for i in small.ids()] == [0, 1000, 10_000, *range(100_000, 400_001, 100_000), 659_500]
    assert [i.step for i in large.ids()] == [0, 1000, 10_000, *range(50_000, 300_001, 50_000)]
    assert [round(i.tokens / 1e9, 2) for i in small.ids()[1:3]] == [0.39, 3.93]
    assert [round(i.tokens / 1e9, 2) for i in large.ids()[1:3]] == [0.39, 4.29]
    assert small.ids()[-1].tokens == 341_005_959_168
    assert small.checkpoints()[3].name == "global_step100000"
    assert small.where(small.checkpoints()[-1]) == ("bigscience/bloom-560m", "main", "")
    assert (large.repo, large.loading.architecture) == ("bigscience/bloom-7b1-intermediate", "BloomForCausalLM")
