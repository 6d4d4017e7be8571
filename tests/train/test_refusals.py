"""Bad input to `fit`: one line that names the culprit and the way out, exit code 2, nothing left behind.

Every case ended in a traceback, a hang or silence once (a campaign of 763 cases).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from safetensors.torch import save_file

from tests.train.conftest import short_run, write_text
from train.__main__ import main
from train.config.options import num_devices
from train.model.xglm import XGLMForCausalLM, build_config

SIZES = {"vocab_size": 300, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64}
TRACKER = {"class_path": "callbacks.tracking.Tracker", "init_args": {"mode": "disabled"}}

Fit = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up text; tokenizer and prepared text are made in it by the first run that gets so far."""
    return write_text(tmp_path_factory.mktemp("text"), ["de", "en"])


@pytest.fixture
def options(text: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of two steps that works."""
    return short_run(text, tmp_path / "run", steps=2)


@pytest.fixture
def fit(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Fit:
    """`fit(*arguments, changes={"trainer.max_steps": 3})` trains; returns exit code and last line of stderr."""
    monkeypatch.delenv("BABELSCOPE_TRACEBACK", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def run(*arguments: object, changes: dict[str, Any] | None = None) -> tuple[int, str]:
        for key, value in (changes or {}).items():
            *parents, name = key.split(".")
            place = options
            for parent in parents:
                place = place[parent]
            place[name] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(options), encoding="utf-8")
        code = main(["fit", "--config", str(path), *map(str, arguments)])
        err = capsys.readouterr().err.strip().splitlines()
        return code, err[-1] if err else ""

    return run


def refused(outcome: tuple[int, str], *said: str) -> None:
    code, line = outcome
    assert code == 2
    assert line.startswith("error: ")
    assert len(line) < 620
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.optimizer.lr", float("inf"), "optimizer.lr is inf"),
        ("model.optimizer.lr", float("nan"), "optimizer.lr is nan"),
        ("model.optimizer.eps", float("inf"), "optimizer.eps is inf"),
        ("model.optimizer.weight_decay", float("inf"), "optimizer.weight_decay is inf"),
        ("model.optimizer.name", "moun", "model.optimizer.name"),
        ("model.optimizer.decay_share", 0.5, "only the schedule wsd has one"),
        ("model.optimizer.decay_share", float("nan"), "optimizer.decay_share is nan"),
        ("trainer.log_every_n_steps", -1, "trainer.log_every_n_steps is -1"),
        ("data.clones", {"en2": "xx"}, "data.clones: en2 is a clone of xx, which is not among the languages de, en"),
        ("data.clones", {"en": "de"}, "data.clones: en is a language of the text already"),
        ("model.d_model", 10**7, "needs about 14,4"),
        ("model.vocab_size", 10**12, "lower model.d_model, num_layers, ffn_dim, vocab_size"),
        ("model.max_position_embeddings", 10**12, "1,000,000,000,000 positions"),
        ("model.num_layers", 10**9, "parameters"),
        ("data.batch_size", 10**9, "a micro-batch of 1,000,000,000 sequences"),
        ("data.batch_size", 5, ""),
        ("data.seed", -1, "data.seed is -1"),
        ("seed_everything", -1, "seed_everything is -1; use a whole number from 0 to 4294967295"),
        ("seed_everything", 2**40, "seed_everything is 1099511627776"),
        ("trainer.gradient_clip_val", float("nan"), "trainer.gradient_clip_val is nan"),
        ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val is -1"),
        ("trainer.precision", "16-mixed", "trainer.precision is 16-mixed; use bf16-mixed or 32-true"),
        ("trainer.precision", "16-true", "trainer.precision is 16-true"),
        ("trainer.precision", "bf16-true", "trainer.precision is bf16-true"),
        ("trainer.devices", -3, "trainer.devices is -3"),
        ("trainer.devices", "two", "trainer.devices is 'two'"),
        ("trainer.devices", 0, "trainer.devices is 0"),
        ("trainer.val_check_interval", 0, "trainer.val_check_interval is 0"),
        ("trainer.accumulate_grad_batches", 0, "trainer.accumulate_grad_batches is 0; use at least 1"),
        ("trainer.accumulate_grad_batches", -1, "trainer.accumulate_grad_batches is -1"),
        ("trainer.fast_dev_run", True, "trainer.fast_dev_run is True"),
        ("trainer.overfit_batches", 2, "trainer.overfit_batches is 2"),
        ("trainer.limit_train_batches", 2, "trainer.limit_train_batches is 2"),
        ("trainer.max_time", "00:00:01:00", "trainer.max_time is 00:00:01:00, but a run is complete after"),
        ("trainer.max_epochs", 0, "trainer.max_epochs is 0, but a run is complete after trainer.max_steps alone"),
        ("trainer.max_epochs", 1, "trainer.max_epochs is 1"),
        ("trainer.accumulate_grad_batches", 3, "data.batch_size 4 is not divisible by 1 devices x 3"),
        ("trainer.max_steps", -1, "trainer.max_steps is -1; set it"),
        ("model.optimizer.warmup_steps", 2, "optimizer.warmup_steps is 2 but the run has only 2 steps"),
        (
            "trainer.callbacks",
            [{"class_path": "callbacks.snapshots.SnapshotWriter"}],
            "SnapshotWriter has no schedule; give one",
        ),
        ("trainer.callbacks", [TRACKER, TRACKER], "trainer.callbacks: Tracker stands there twice"),
        (
            "trainer.callbacks",
            [
                {
                    "class_path": "callbacks.analyses.AnalysisCallback",
                    "init_args": {"analyses": "x.yaml", "schedule": {"base": 2}, "key_budget": -1},
                }
            ],
            "key_budget is -1",
        ),
    ],
)
def test_a_value_that_no_training_can_have_is_named(
    fit: Fit, tmp_path: Path, key: str, value: object, said: str
) -> None:
    if (key, value) == ("data.batch_size", 5):  # divides: a control that the table refuses for the right reason
        assert fit(changes={key: value})[0] == 0
        return
    refused(fit(changes={key: value}), said)
    assert not (tmp_path / "run").exists()


def test_a_validation_that_never_comes_is_refused_before_text_is_prepared(fit: Fit, tmp_path: Path) -> None:
    changes = {"trainer.val_check_interval": 5, "trainer.check_val_every_n_epoch": 1}
    cache = ("--data.cache", tmp_path / "cache", "--trainer.accumulate_grad_batches", 2)
    refused(fit(*cache, changes=changes), "trainer.val_check_interval is 5, but the run has 4 micro-batches")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
    assert fit(*cache, changes={"trainer.val_check_interval": 4})[0] == 0
    assert fit(*cache, changes={"trainer.val_check_interval": 5, "trainer.check_val_every_n_epoch": None})[0] == 0


@pytest.mark.parametrize(
    ("devices", "accelerator", "nodes", "gpus", "count"),
    [
        (2, "cpu", 1, 0, 2),
        ("2", "cpu", 3, 0, 6),
        ("0,1", "gpu", 1, 8, 2),
        ([0, 2, 5], "gpu", 2, 8, 6),
        ("auto", "gpu", 1, 8, 8),
        (-1, "cuda", 2, 4, 8),
        ("-1", "auto", 1, 4, 4),
        ("auto", "auto", 1, 0, 1),
        ("auto", "cpu", 1, 8, 1),
        ("auto", "gpu", 1, 0, None),
    ],
)
def test_devices_are_counted_however_they_are_given(
    monkeypatch: pytest.MonkeyPatch, devices: object, accelerator: str, nodes: int, gpus: int, count: int | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert num_devices(Namespace(devices=devices, accelerator=accelerator, num_nodes=nodes)) == count


def test_a_batch_that_the_processes_cannot_share_is_refused_before_text_is_prepared(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--data.cache", tmp_path / "cache", "--trainer.devices", 3)
    refused(fit(*arguments), "data.batch_size 4 is not divisible by 3 devices x 1")
    monkeypatch.setattr("train.config.options.num_devices", lambda trainer: None)  # only the launcher knows
    refused(fit(*arguments), "data.batch_size 4 is not divisible by 3 devices x 1")
    assert not (tmp_path / "cache").exists()


def test_one_callback_without_a_list_is_a_list_of_one(fit: Fit, tmp_path: Path) -> None:
    assert fit("--trainer.callbacks", "callbacks.lock.RunLock")[0] == 0
    assert (tmp_path / "run" / "run.lock").is_file()


def test_a_wrong_word_where_several_types_fit_is_one_short_line(fit: Fit) -> None:
    refused(fit("--trainer.gradient_clip_val", "much"), "trainer.gradient_clip_val: expected float or int or null, got")


def test_analyses_that_do_not_fit_the_run_are_refused_before_it(fit: Fit, tmp_path: Path) -> None:
    listed, concepts = tmp_path / "list.yaml", tmp_path / "concepts.jsonl"
    entry = {"class_path": "ConceptOverlap", "init_args": {"concepts": str(concepts), "k": 100}}
    listed.write_text(yaml.safe_dump({"analyses": [entry]}))
    live = {
        "class_path": "callbacks.analyses.AnalysisCallback",
        "init_args": {"analyses": str(listed), "schedule": {"steps": [0]}},
    }
    changes: dict[str, Any] = {"trainer.callbacks": [{"class_path": "callbacks.lock.RunLock"}, live]}
    refused(fit(changes=changes), "list.yaml: overlap: ", "does not exist; make it with `python -m analysis label")
    row = {"concept": "water", "uid": "1", "text": "x", "label": 1}
    concepts.write_text("".join(json.dumps({**row, "language": name}) + "\n" for name in ("en", "xx")))
    refused(fit(), "overlap measures xx", "languages: [en]")
    concepts.write_text("".join(json.dumps({**row, "language": name}) + "\n" for name in ("en", "de")))
    refused(fit(), "add the file to data.exclude")
    assert main(["describe", "--config", str(tmp_path / "config.yaml"), "--data.languages", "[de, en]"]) == 2
    changes = {"data.exclude": [str(concepts)]}
    entry["init_args"]["k"] = 10**6
    listed.write_text(yaml.safe_dump({"analyses": [entry]}))
    refused(fit(changes=changes), "k is 1000000 but the model has")
    assert not (tmp_path / "run").exists()


# files ---------------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB.encode(), "stands for more than 200,000 values"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested deeper than 60 levels"),
        (b"trainer:\n  max_steps: 2\n  max_steps: 3\n", "line 3: key 'max_steps' is given twice, first in line 2"),
        (b"\x00\xff\xfe\x80" * 100, "not a text file, so no configuration"),
        (b"a: &a [*a]\n", "an alias stands inside what it names"),
        (b"trainer: [1\n", "not valid YAML"),
    ],
)
def test_a_configuration_that_must_not_be_built_is_refused_at_once(
    fit: Fit, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    refused(fit("--config", path), "bad.yaml", said)


def test_a_bomb_in_an_option_is_refused_at_once(fit: Fit) -> None:
    flow = "{" + ", ".join(line for line in BOMB.strip().splitlines()) + "}"
    code, line = fit("--data.languages", flow)
    assert code == 2
    assert line.startswith("error: ")


def test_what_cannot_be_resumed_from_is_named_and_leaves_nothing(fit: Fit, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("state.ckpt", "torn.ckpt", "plain.yaml", "pickle.ckpt")}
    torch.save({"state_dict": {"a": torch.zeros(1)}}, files["state.ckpt"])
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, files["torn.ckpt"])
    files["torn.ckpt"].write_bytes(files["torn.ckpt"].read_bytes()[:2000])
    files["plain.yaml"].write_text("trainer: {max_steps: 2}\n")
    files["pickle.ckpt"].write_bytes(pickle.dumps(Path("x")))
    refused(
        fit("--resume", files["state.ckpt"]), "state.ckpt: not a checkpoint of a training, it lacks optimizer_states"
    )
    for name in ("torn.ckpt", "plain.yaml", "pickle.ckpt"):
        refused(fit("--resume", files[name]), f"{name}: torn, or not a checkpoint of a training")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_or_other_data_leaves_nothing(fit: Fit, tmp_path: Path) -> None:
    assert fit()[0] == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001.ckpt"
    other = str(tmp_path / "other")
    given = ("--resume", checkpoint, "--trainer.default_root_dir", other)
    refused(fit(*given, "--model.ffn_dim", 32), "step_00000001.ckpt: holds another model: model.", "shape")
    refused(fit(*given, "--data.seed", 5), "seed 0 -> 5", "--allow_changes true")
    assert not Path(other).exists()
    assert fit(*given, "--data.seed", 5, "--allow_changes", "true")[0] == 0


def test_initial_weights_that_cannot_be_used_are_named(fit: Fit, tmp_path: Path) -> None:
    model = XGLMForCausalLM(build_config(**SIZES, max_position_embeddings=32))
    folder = tmp_path / "weights"
    model.save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, settings = weights.read_bytes(), config.read_text()
    option = ("--model.initial_weights", folder)

    refused(fit(*option, "--model.ffn_dim", 32), "has ffn_dim 64 but the run has 32")
    weights.write_bytes(whole[: len(whole) // 2])
    refused(fit(*option), "no whole model.safetensors")
    weights.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refused(fit(*option), "no whole model.safetensors")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    name = next(iter(state))
    save_file({**state, name: state[name] * float("nan")}, weights, metadata={"format": "pt"})
    refused(fit(*option), "holds NaN or infinity")
    save_file({key: state[key] for key in list(state)[:3]}, weights, metadata={"format": "pt"})
    refused(fit(*option), "lacks", "weights, such as")
    config.write_text("[1]")
    refused(fit(*option), "config.json")
    config.unlink()
    refused(fit(*option), "has no config.json")
    config.write_text(settings)
    weights.write_bytes(whole)
    assert not (tmp_path / "run").exists()
    assert fit(*option)[0] == 0
