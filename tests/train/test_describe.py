"""What a run will be: counts against the model itself, the schedule, memory against what autograd really saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from tests.train.conftest import Command
from train.__main__ import main
from train.cli import ParsedRun
from train.config.memory import activation_bytes, estimate_memory, optimizer_bytes
from train.describe import RunDescription, format_description
from train.flops import muon_flops
from train.model import attention
from train.model.xglm import XGLMForCausalLM, build_config
from train.optim import OptimizerOptions, build_optimizer

ROOT = Path(__file__).resolve().parents[2]
REAL_RUN = str(ROOT / "configs" / "train" / "xglm_257m.yaml")


def test_the_real_run_in_figures() -> None:
    run = RunDescription(ParsedRun(["fit", "--config", REAL_RUN]).run)
    with torch.device("meta"):
        model = XGLMForCausalLM(build_config(vocab_size=256_008, d_model=512, num_layers=24, ffn_dim=4096))
    assert run.parameters.total == 257_115_136 == sum(parameter.numel() for parameter in model.parameters())
    assert run.parameters.embedding == model.get_input_embeddings().weight.numel()
    assert run.tokens_per_step == 2**16
    assert run.tokens == 2**33
    assert run.flops_per_token == pytest.approx(1.617e9, rel=1e-3)
    powers = {0, *(2**k for k in range(18))}
    assert set(run.snapshot_steps) == powers | set(range(0, 2**17 + 1, 5000))
    assert run.measured_steps == run.snapshot_steps
    assert run.snapshot_bytes == 4 * 257_115_136
    assert run.checkpoint_bytes == 3 * 12 * 257_115_136  # two kept, one being written
    assert run.hours(185_000) == pytest.approx(2**33 / 185_000 / 3600)
    assert run.memory.total < 40e9  # the promise of the configuration's comment


def test_snapshots_take_the_disk_that_was_announced(tmp_path: Path) -> None:
    run = RunDescription(ParsedRun(["fit", "--config", str(ROOT / "configs" / "train" / "smoke.yaml")]).run)
    XGLMForCausalLM(run.config).save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert written == pytest.approx(run.snapshot_bytes, rel=0.05)


def saved_bytes(*, bf16: bool, layers: int, d: int = 32, ffn: int = 128, heads: int = 4, dropout: float = 0.0) -> float:
    """Bytes per token of all tensors, other than parameters and their bf16 copies, that autograd keeps."""
    torch.manual_seed(0)
    config = build_config(
        vocab_size=64, d_model=d, num_layers=layers, attention_heads=heads, ffn_dim=ffn, dropout=dropout
    )
    model = XGLMForCausalLM(config).train()
    shapes = {parameter.shape for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    storages: dict[int, tuple[int, torch.Tensor]] = {}  # the tensors are kept alive, so that no address is used twice
    tokens = torch.randint(4, 64, (3, 50))

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in shapes:
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(input_ids=tokens, labels=tokens)
    return sum(size for size, _ in storages.values()) / tokens.numel()


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"ffn": 256}, {"d": 64}, {"dropout": 0.1}])
def test_activations_of_a_block_are_those_that_autograd_keeps(
    bf16: bool, sizes: dict[str, int], short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FLOAT32_LENGTH", 50 if short else 49)
    measured = (saved_bytes(bf16=bf16, layers=5, **sizes) - saved_bytes(bf16=bf16, layers=2, **sizes)) / 3  # type: ignore[arg-type]
    d, ffn = sizes.get("d", 32), sizes.get("ffn", 128)

    def estimate(layers: int) -> int:
        config = build_config(
            vocab_size=64, d_model=d, num_layers=layers, attention_heads=4, ffn_dim=ffn, dropout=sizes.get("dropout", 0)
        )
        return activation_bytes(config, bf16=bf16, checkpointing=False, float32_attention=short)

    assert estimate(2) - estimate(1) == pytest.approx(measured, rel=0.05)


def test_checkpointing_and_smaller_micro_batches_need_less() -> None:
    config = build_config()
    options = {"block_size": 1024, "bf16": True, "checkpointing": False, "on_gpu": True}
    full = estimate_memory(config, micro_batch_tokens=16_384, **options)
    half = estimate_memory(config, micro_batch_tokens=8_192, **options)
    assert half.activations == pytest.approx(full.activations / 2)
    assert half.weights == full.weights
    spared = estimate_memory(config, micro_batch_tokens=16_384, **(options | {"checkpointing": True}))
    assert spared.activations < full.activations / 5


def test_eight_devices_share_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.devices", "8", "--trainer.accumulate_grad_batches", "1", "--trainer.callbacks", "null"]
    assert main(["describe", "--config", REAL_RUN, *options, "--tokens_per_second", "1e6", "5e5"]) == 0
    out = capsys.readouterr().out
    assert "257,115,136 = 131,076,096 embedding (tied) + 126,039,040 body" in out
    assert "65,536 = 64 sequences x 1024 tokens (8 devices, micro-batches of 8)" in out
    assert "1,000,000 tokens/s  2.4 h" in out
    assert "500,000 tokens/s  4.8 h" in out


def test_muon_keeps_one_moment_of_its_matrices_and_costs_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        *("--config", REAL_RUN, "--trainer.callbacks", "null"),
        *("--model.optimizer.name", "muon", "--model.optimizer.schedule", "wsd"),
    ]
    assert main(["describe", *options]) == 0
    out = capsys.readouterr().out
    assert "Muon and AdamW, learning rate 0.001: 2,000 steps of warm-up, flat, falling over the last 26,214" in out
    assert "Muon on 126 M parameters, AdamW on 131 M; orthogonalising takes 1.4 % of a step's FLOPs" in out

    config = build_config(vocab_size=64, d_model=32, num_layers=2, attention_heads=4, ffn_dim=128)
    model = XGLMForCausalLM(config)
    optimizer = build_optimizer(model, OptimizerOptions(name="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == muon_flops(config)
    state = [tensor for moments in optimizer.state.values() for tensor in moments.values() if tensor.ndim]
    assert sum(4 * tensor.numel() for tensor in state) == optimizer_bytes(config, "muon")


def test_a_precision_that_is_a_number_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.precision", "32", "--trainer.callbacks", "null"]
    assert main(["describe", "--config", REAL_RUN, *options]) == 0
    assert "weights 1.03 GB, gradients" in capsys.readouterr().out, "no copies in bf16"


def test_cloned_languages_are_described_and_may_be_measured(command: Command, config: Path, tmp_path: Path) -> None:
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    options["data"] |= {"languages": ["tr", "en", "de"], "clones": {"en2": "en"}}
    text = options["data"]["sources"][0]["init_args"]["path"]
    loss = {"texts": text, "languages": ["en", "en2"], "max_length": 16}
    (tmp_path / "list.yaml").write_text(
        yaml.safe_dump({"analyses": [{"class_path": "HeldOutLoss", "init_args": loss}]})
    )
    live = {"analyses": str(tmp_path / "list.yaml"), "schedule": {"base": 2}}
    options["trainer"]["callbacks"] = [{"class_path": "callbacks.analyses.AnalysisCallback", "init_args": live}]
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    code, out, line = command("describe", "--config", config, "--model.vocab_size", 600)
    assert (code, line) == (0, "")
    assert "languages     4: de en en2 tr" in out


def test_a_run_without_schedule_has_no_snapshots() -> None:
    run = RunDescription(ParsedRun(["fit", "--config", REAL_RUN, "--trainer.callbacks", "null"]).run)
    assert run.snapshot_steps == run.measured_steps == ()
    assert "snapshots     0 of" in format_description(run, [1000.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_steps", "-1"], "trainer.max_steps is -1; set it"),
        (["--trainer.devices", "7"], "data.batch_size 64 is not divisible by 7 devices x 4"),
        (["--tokens_per_second", "0"], "--tokens_per_second 0: a speed is above 0"),
        (["--tokens_per_second", "fast"], "tokens_per_second"),
    ],
)
def test_what_cannot_be_described_is_refused_in_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", "--config", REAL_RUN, *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
