"""The command line: what is saved, what is refused, in one line and with exit code 2."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from babelscope.yaml_text import read_config
from tests.train.conftest import Command
from train.__main__ import COMMANDS, main
from train.cli import ParsedRun, default_precision
from train.config.run_config import Difference, find_differences, save_config
from train.module import LanguageModelingModule

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("demo.yaml", "smoke.yaml", "xglm_257m.yaml")


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_survive_a_round_trip(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--print_config` of what was printed prints the same again: nothing is lost and nothing is unknown."""
    monkeypatch.chdir(ROOT)
    printed = []
    path = ROOT / "configs" / "train" / name
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            ParsedRun(["fit", "--config", str(path), "--print_config"])
        assert ended.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
        path = tmp_path / "printed.yaml"
        path.write_text(yaml.safe_dump(printed[-1]), encoding="utf-8")
    assert printed[0] == printed[1]
    assert printed[0]["seed_everything"] == 1
    assert printed[0]["model"]["vocab_size"] > 0


def test_the_real_run_is_that_of_the_paper() -> None:
    run = ParsedRun(["fit", "--config", str(ROOT / "configs" / "train" / "xglm_257m.yaml")]).run
    assert run.trainer.max_steps == 2**17
    assert run.data.batch_size * run.data.block_size == 2**16
    assert len(run.data.languages) == 16
    assert {language for source in run.data.sources for language in source.init_args.names} == set(run.data.languages)


def test_a_run_saves_its_whole_configuration_and_goes_on_with_it(
    command: Command, config: Path, tmp_path: Path
) -> None:
    assert command("fit", "--config", config)[0] == 0
    folder = tmp_path / "run"
    stored = read_config(folder / "config.yaml")
    assert stored is not None
    assert stored["model"]["optimizer"]["betas"] == [0.9, 0.95]  # a default, saved all the same
    assert stored["trainer"]["max_steps"] == 4
    assert stored["trainer"]["precision"] == default_precision("cpu")  # what null stood for here
    assert not {"resume", "allow_changes", "config"} & stored.keys()
    before = (folder / "config.yaml").stat()

    # the saved file alone starts the same run: it resumes at its last step, finds nothing to do and changes nothing
    assert command("fit", "--config", folder / "config.yaml")[0] == 0
    after = (folder / "config.yaml").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)

    # validation of the newest checkpoint
    code, out, _ = command("validate", "--config", config)
    assert code == 0
    shown = [line.split()[0] for line in out.splitlines()]
    of_languages = [f"{metric}/{x}" for x in ("de", "en", "tr") for metric in ("bits_per_byte", "perplexity")]
    assert shown == [*of_languages, "bits_per_byte/mean"]
    code, _, line = command("validate", "--config", config, "--model.d_model", 32)
    assert (code, "holds another model" in line) == (2, True)

    code, _, line = command("fit", "--config", config, "--model.optimizer.lr", "0.5")
    assert code == 2
    assert "another configuration (model.optimizer.lr: 0.005 -> 0.5)" in line
    assert read_config(folder / "config.yaml") == stored

    code, _, line = command("fit", "--config", config, "--resume", "never")
    assert (code, "holds a run already" in line) == (2, True)

    code, _, _ = command("fit", "--config", config, "--trainer.max_steps", 6, "--allow_changes", "true")
    assert code == 0
    checkpoint = torch.load(folder / "checkpoints" / "step_00000006.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    changed = read_config(folder / "config.yaml")
    assert changed is not None
    assert changed["trainer"]["max_steps"] == 6


def test_validation_without_text_says_so(command: Command, config: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(text.read_text(encoding="utf-8").replace('"valid"', '"train"'), encoding="utf-8")
    code, _, line = command("validate", "--config", config)
    assert (code, "data.sources have no text of the split valid" in line) == (2, True)


def test_both_starts_say_where_run_and_page_are_and_no_line_is_a_warning(
    command: Command, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, wandb_sessions: Callable
) -> None:
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    del options["trainer"]["enable_progress_bar"]
    tracker = {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "offline", "every_n_steps": 1}}
    options["trainer"]["callbacks"].insert(1, tracker)
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    said, began = [], time.monotonic()
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        for _ in range(2):  # the second start finds nothing to do
            code, out, _ = command("fit", "--config", config)
            assert code == 0
            assert "Epoch" not in out
            said.append(out.splitlines()[-3:])
    assert said[0] == said[1]
    run, page, following = said[0]
    assert run == f"run:      {tmp_path / 'run'}, step 4 of 4"
    assert following == f"next:     python -m analysis report {tmp_path / 'run'}"
    (session,) = wandb_sessions(tmp_path / "run")
    assert page == f"W&B:      {session.folder}"
    bars = [record.message for record in caplog.records if record.name == "train.progress"]
    minutes = (time.monotonic() - began) // 60
    assert 1 <= len(bars) <= 1 + minutes, "no terminal, so a line a minute and one at the end"
    assert re.fullmatch(r"step 4 of 4   256 tokens   loss \d\.\d{3}(   [\d,]+ tokens/s)?", bars[-1])
    assert not [str(warning.message) for warning in warned if issubclass(warning.category, UserWarning)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def with_loggers(config: Path, tmp_path: Path, loggers: dict[str, dict[str, Any]]) -> None:
    """Add to a configuration an analysis, the two monitors and these loggers of Lightning."""
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    text = options["data"]["sources"][0]["init_args"]["path"]
    analyses = tmp_path / "analyses.yaml"
    loss = {"texts": text, "languages": ["de", "en"], "max_length": 16, "num_bootstrap": 20}
    analyses.write_text(yaml.safe_dump({"analyses": [{"class_path": "HeldOutLoss", "init_args": loss}]}))
    live = {"analyses": str(analyses), "schedule": {"base": 2}}
    added = [
        {"class_path": "callbacks.analyses.AnalysisCallback", "init_args": live},
        {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "disabled", "every_n_steps": 1}},
        {"class_path": "LearningRateMonitor"},
        {"class_path": "DeviceStatsMonitor"},
    ]
    options["trainer"] |= {
        "callbacks": [options["trainer"]["callbacks"][0], *added],
        "log_every_n_steps": 1,
        "accumulate_grad_batches": 2,
        "logger": [{"class_path": name, "init_args": arguments} for name, arguments in loggers.items()],
    }
    config.write_text(yaml.safe_dump(options), encoding="utf-8")


def test_scalars_reach_the_loggers_of_the_user_on_the_axis_of_optimizer_steps(
    command: Command, config: Path, tmp_path: Path
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tables, boards = tmp_path / "csv", tmp_path / "tensorboard"
    with_loggers(
        config, tmp_path, {"CSVLogger": {"save_dir": str(tables)}, "TensorBoardLogger": {"save_dir": str(boards)}}
    )
    assert command("fit", "--config", config)[0] == 0

    (table,) = tables.rglob("metrics.csv")
    frame = pd.read_csv(table)
    steps = {key: frame.loc[frame[key].notna(), "step"].tolist() for key in frame}
    assert steps["train/loss"] == [1, 2, 3, 4]
    assert steps["held_out/bits_per_byte"] == [0, 1, 2, 4]
    assert steps["val/bits_per_byte/en"] == [2, 4]
    assert any(key.startswith("lr-AdamW") for key in frame), "LearningRateMonitor writes to the same logger"
    assert any("cpu_percent" in key for key in frame), "and so does DeviceStatsMonitor"
    (folder,) = {path.parent for path in boards.rglob("events.*")}
    written = events.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in written.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in written.Scalars("held_out/bits_per_byte")] == [0, 1, 2, 4]


@pytest.mark.optin
def test_scalars_reach_mlflow_on_the_axis_of_optimizer_steps(command: Command, config: Path, tmp_path: Path) -> None:
    """Needs `mlflow-skinny` with `sqlalchemy`, `alembic` and `cryptography`, which are no dependencies."""
    tracking = pytest.importorskip("mlflow.tracking")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with_loggers(config, tmp_path, {"MLFlowLogger": {"tracking_uri": store, "experiment_name": "try"}})
    assert command("fit", "--config", config)[0] == 0

    client = tracking.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("try").experiment_id])
    assert run.info.status == "FINISHED"

    def steps(key: str) -> list[int]:
        return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]

    assert steps("train/loss") == [1, 2, 3, 4]
    assert steps("held_out/bits_per_byte") == [0, 1, 2, 4]
    assert steps("val/bits_per_byte/en") == [2, 4]
    keys = {*run.data.metrics}
    assert any(key.startswith("lr-AdamW") for key in keys)
    assert any("cpu_percent" in key for key in keys)


def test_a_trial_of_a_sweep_has_a_folder_and_a_page_of_its_own(
    command: Command, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    for trial in ("first", "second"):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        assert command("fit", "--config", config, "--trainer.max_steps", 2)[0] == 0
        assert (tmp_path / "run" / trial / "config.yaml").is_file()
        stored = read_config(tmp_path / "run" / trial / "config.yaml")
        assert stored is not None
        assert stored["trainer"]["default_root_dir"] == str(tmp_path / "run" / trial)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.vocab_size", "512"],
            "the tokenizer has 300 tokens but model.vocab_size is 512; set model.vocab_size",
        ),
        (["--data.block_size", "64"], "data.block_size is 64 but model.max_position_embeddings is 32"),
        (["--data.languages", "[de, xx]"], "unknown language xx: the sources offer de, en, tr"),
        (["--trainer.strategy", "fsdp"], "trainer.strategy is fsdp"),
        (["--trainer.strategy", "deepspeed_stage_2"], "use ddp or auto"),
        (["--model.attention_heads", "3"], "d_model 16 must be a multiple of attention_heads 3"),
        (["--model.optimizer.lr", "-1"], "optimizer.lr is -1.0"),
        (["--model.learning_rate", "1"], "--model.learning_rate"),
        (["--resume", "nowhere.ckpt"], "--resume nowhere.ckpt: no such file"),
        (["--data.tokenizer", "nowhere", "--data.vocab_size", "null"], "nowhere: no tokenizer there"),
    ],
)
def test_wrong_options_give_one_line_and_leave_no_run_folder(
    command: Command, config: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, line = command("fit", "--config", config, *options)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_missing_configuration_and_an_unknown_command_are_named(command: Command) -> None:
    code, _, line = command("fit", "--config", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in line
    code, _, line = command("train")
    assert code == 2
    assert "unknown command 'train'; choose one of init, fit" in line


@pytest.mark.parametrize("name", ["tokenizer", "prepare", "audit"])
def test_commands_of_the_data_refuse_in_one_line_too(command: Command, name: str) -> None:
    code, out, line = command(name, "--no-such-option")
    assert (code, out) == (2, "")
    assert line.startswith("error: ")
    assert "--no-such-option" in line or "required" in line
    code, _, line = command(name, "--config", "nowhere.yaml", *(["--against", "x"] if name == "audit" else []))
    assert code == 2
    assert line.startswith("error: ")


def test_prepared_text_is_what_training_reads(command: Command, config: Path, tmp_path: Path) -> None:
    assert command("tokenizer", "--config", config)[0] == 0
    code, _, line = command("prepare", "--config", config, "--workers", -1)
    assert (code, "data.prepare_workers must be at least 0, got -1" in line) == (2, True)
    code, out, _ = command("prepare", "--config", config)
    assert code == 0
    assert "tr" in out
    prepared = sorted((tmp_path / "cache").glob("*/manifest.json"))
    before = [path.stat().st_mtime_ns for path in prepared]
    assert before
    assert command("fit", "--config", config)[0] == 0
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").glob("*/manifest.json"))] == before


def test_the_traceback_is_there_for_who_asks(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BABELSCOPE_TRACEBACK", "1")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    with pytest.raises(ValueError, match="unknown language xx"):
        main(["fit", "--config", str(config), "--data.languages", "[xx]"])


@pytest.mark.parametrize("name", ["describe", "tokenizer", "prepare", "audit"])
def test_help_imports_nothing_heavy_and_names_the_command(name: str) -> None:
    """In a process of its own: what tests import would hide what the command does."""
    script = (
        "import sys; from train.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pytorch_lightning', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    for arguments in (["--help"], [name, "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert f"usage: python -m train {name} " in done.stdout
    own = {"describe": "--tokens_per_second", "tokenizer": "--vocab_size", "prepare": "--verify", "audit": "--n "}
    assert own[name] in done.stdout


def test_help_of_fit_shows_the_docstring_of_every_option_of_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m train fit ")
    options = re.findall(r"^  (--(?:model|data)\.[\w.]+)[^\n]*\n((?:    .*\n?)*)", text, re.MULTILINE)
    assert len(options) > 25
    bare = [
        name
        for name, said in options
        if not name.endswith(".help") and not re.sub(r"\((required, )?type:[^)]*\)?|CONFIG", "", said).strip()
    ]
    assert not bare


def test_help_lists_every_command(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_only_options_that_determine_the_weights_are_decisive() -> None:
    stored: dict[str, Any] = {"model": {"d_model": 8, "compile": False}, "trainer": {"log_every_n_steps": 1}, "old": 1}
    given: dict[str, Any] = {"model": {"d_model": 16, "compile": True}, "trainer": {"log_every_n_steps": 2}, "new": 2}
    found = find_differences(stored, given, {})
    assert found == [
        Difference("model.d_model", 8, 16),
        Difference("model.compile", False, True),
        Difference("trainer.log_every_n_steps", 1, 2),
        Difference("new", None, 2),
        Difference("old", 1, None),
    ]
    assert [difference.key for difference in found if difference.decisive] == ["model.d_model"]
    assert find_differences(stored, stored, {}) == []


def test_an_option_younger_than_the_run_had_its_default() -> None:
    stored = {"model": {"d_model": 8}, "trainer": {"strategy": {"class_path": "X"}}}
    defaults = {"model": {"d_model": 4, "optimizer": {"name": "adamw"}}, "trainer": {"strategy": "auto"}}
    same = {"model": {"d_model": 8, "optimizer": {"name": "adamw"}}, "trainer": {"strategy": {"class_path": "X"}}}
    assert find_differences(stored, same, defaults) == []
    other = {**same, "model": {"d_model": 8, "optimizer": {"name": "muon"}}}
    assert find_differences(stored, other, defaults) == [Difference("model.optimizer.name", "adamw", "muon")]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adamw", "schedule": "cosine"},
        {"name": "muon", "schedule": "wsd", "decay_share": 0.5},
    ],
)
def test_a_run_that_broke_off_ends_in_the_same_bits(
    command: Command, config: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, momentum, moments and the schedule's place, with dropout and in the midst of the fall of `wsd`."""
    given = ["--config", str(config), "--model.dropout=0.1", "--trainer.max_steps=6"]
    given += [f"--model.optimizer.{name}={value}" for name, value in options.items()]
    assert command("fit", *given, "--trainer.default_root_dir", tmp_path / "whole")[0] == 0

    step = LanguageModelingModule.training_step

    def breaks(module: LanguageModelingModule, *batch: Any) -> torch.Tensor:
        if module.global_step == 5:
            raise ValueError("broke off")
        return step(module, *batch)

    broken = (*given, "--trainer.default_root_dir", tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelingModule, "training_step", breaks)
        assert command("fit", *broken)[0] == 2
    assert command("fit", *broken)[0] == 0
    ends = [
        torch.load(tmp_path / name / "checkpoints" / "step_00000006.ckpt", weights_only=True)
        for name in ("whole", "broken")
    ]
    assert ends[1]["lr_schedulers"] == ends[0]["lr_schedulers"]
    torch.testing.assert_close(ends[1]["state_dict"], ends[0]["state_dict"], rtol=0, atol=0)
    states = [end["optimizer_states"][0] for end in ends]
    torch.testing.assert_close(states[1]["state"], states[0]["state"], rtol=0, atol=0)
    assert states[1]["param_groups"] == states[0]["param_groups"]
    assert len(states[0]["param_groups"]) == (3 if options["name"] == "muon" else 2)


def test_a_broken_configuration_in_the_run_folder_is_named(tmp_path: Path) -> None:
    save_config(tmp_path, "a: [1\n")
    with pytest.raises(ValueError, match=r"config\.yaml: not valid YAML"):
        read_config(tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert default_precision("auto") == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert default_precision("gpu") == "32-true"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert default_precision("cpu") == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert default_precision("cpu") == "bf16-mixed"
