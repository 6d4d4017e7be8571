"""The parts of gpu_day.sh: what a GPU computes against the CPU, and how fast it trains.

    python tests/benchmarks/gpu_day.py [--cpu] PART ...

A part writes a line for every answer and never stops the others; the exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.benchmarks.fifty_steps import OPTIONS, losses  # noqa: E402
from train.model.loss import linear_cross_entropy  # noqa: E402
from train.model.xglm import XGLMForCausalLM, build_config  # noqa: E402
from train.optim import OptimizerOptions, build_optimizer  # noqa: E402

PACKAGES = ("torch", "transformers", "pytorch_lightning", "numba", "scipy", "jsonargparse", "pyarrow", "wandb")


@dataclass(frozen=True)
class Answer:
    """One line."""

    verdict: str
    """PASS, FAIL, FIGURE or SKIP."""
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<7}{self.text}"


def within(name: str, found: float, limit: float) -> Answer:
    return Answer("PASS" if found <= limit else "FAIL", f"{name}: {found:.2g}, at most {limit:g}")


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def machine(device: str) -> Iterator[Answer]:
    for name in PACKAGES:
        try:
            yield Answer("FIGURE", f"{name} {importlib.import_module(name).__version__}")
        except ImportError:
            yield Answer("SKIP", f"{name} is not there")
    if device == "cuda":
        from train.flops import peak_flops

        card, peak = torch.cuda.get_device_properties(0), peak_flops(device)
        yield Answer("FIGURE", f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 1e9:.0f} GB")
        yield Answer("PASS" if peak else "FAIL", f"peak in train/flops.py: {peak or 'unknown, so no MFU is logged'}")


def loss(device: str) -> Iterator[Answer]:
    """The formulation of a GPU in float32 and bfloat16, in several chunks, against the textbook in float64."""
    tokens, vocabulary, width = (2048, 32_000, 512) if device == "cuda" else (128, 1000, 32)
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, width), torch.randn(vocabulary, width) / width**0.5
    labels = torch.randint(vocabulary, (tokens,)).masked_fill(torch.rand(tokens) < 0.1, -100)

    def gradients(where: str, dtype: torch.dtype, backend: Any, chunk: int | None) -> list[Tensor]:
        factors = [one.to(where, dtype, copy=True).requires_grad_() for one in (hidden, weight)]
        value = linear_cross_entropy(*factors, labels.to(where), backend=backend, chunk=chunk)
        value.backward()
        return [value, *(factor.grad for factor in factors if factor.grad is not None)]

    expected = gradients("cpu", torch.float64, "naive", None)
    for dtype, limits in ((torch.float32, (1e-6, 1e-5, 1e-5)), (torch.bfloat16, (1e-3, 1e-2, 1e-2))):
        found = gradients(device, dtype, "tokens", tokens // 3)
        for name, ours, theirs, limit in zip(("loss", "d hidden", "d weight"), found, expected, limits, strict=True):
            yield within(f"loss, {dtype}, {name}", distance(ours, theirs), limit)


def tiny_model(**sizes: Any) -> XGLMForCausalLM:
    torch.manual_seed(1)
    defaults = {"vocab_size": 512, "d_model": 64, "num_layers": 4, "attention_heads": 4, "ffn_dim": 256, "dropout": 0.0}
    return XGLMForCausalLM(build_config(**(defaults | {"max_position_embeddings": 128} | sizes))).train()


def model(device: str) -> Iterator[Answer]:
    """Loss and all gradients of plain, padded and packed batches, float32 and bfloat16, against the CPU."""
    ids = torch.randint(4, 512, (4, 96), generator=torch.Generator().manual_seed(2))
    segments = (torch.arange(96) // 30).expand(4, -1)
    mask = (torch.arange(96) >= torch.tensor([[0], [3], [9], [40]])).long()
    for name, extra in (("plain", {}), ("padded", {"attention_mask": mask}), ("packed", {"segment_ids": segments})):
        ends = []
        for where, bf16 in (("cpu", False), (device, False), (device, True)):
            network = tiny_model().to(where)
            with torch.autocast(where, torch.bfloat16, enabled=bf16):
                inputs = {key: value.to(where) for key, value in {"input_ids": ids, "labels": ids, **extra}.items()}
                value = network(**inputs).loss
            value.backward()
            gradients = torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
            ends.append((value, gradients))
        for kind, end, limits in (("float32", ends[1], (1e-5, 1e-4)), ("bf16", ends[2], (5e-3, 3e-2))):
            yield within(f"model, {name}, {kind}, loss", distance(end[0], ends[0][0]), limits[0])
            yield within(f"model, {name}, {kind}, gradients", distance(end[1], ends[0][1]), limits[1])


def steps(device: str) -> Iterator[Answer]:
    """The fifty steps of the golden losses, without dropout, against the CPU; and twice the same bits."""
    for name, options in OPTIONS.items():
        expected, *found = (torch.tensor(losses(options, where, dropout=0.0)) for where in ("cpu", device, device))
        # Rounding of 1e-7 moves Muon's losses by 7e-5 (see there); a GPU's sums differ by a few times that.
        limit = {"adamw": 1e-3, "muon": 1e-2}[name]
        yield within(f"50 steps of {name}, loss", float((found[0] / expected - 1).abs().max()), limit)
        yield Answer("FIGURE", f"50 steps of {name} twice: {'equal' if torch.equal(*found) else 'not equal'} bits")


def analyses(device: str) -> Iterator[Answer]:
    """Responses, ranking, both probes and forced generation against the CPU."""
    from analysis.experts.average_precision import Labels, average_precision, settle_ties
    from analysis.extraction.encoding import Batch
    from analysis.extraction.passes import collect
    from analysis.extraction.pooling import make_pooling
    from analysis.extraction.sites import find_sites
    from analysis.probes.logistic import fit_logistic
    from analysis.steering.generation import Decoding, Job, generate
    from tests.analysis.probes.objectives import objectives

    ids = torch.randint(4, 512, (16, 24), generator=torch.Generator().manual_seed(3))
    everything = torch.ones_like(ids)
    batch = Batch(torch.arange(16), ids, everything, everything.bool())
    models = {where: tiny_model().eval().to(where) for where in ("cpu", device)}
    sites = find_sites(models["cpu"])

    def take(chosen: Batch) -> Any:
        pooling = make_pooling("max", chosen.content)
        return (slice(None), chosen.indices), lambda _, activations: pooling(activations).T

    shapes = {site: (site.num_units, 16) for site in sites}
    values = {where: collect([network], [batch], shapes, take) for where, network in models.items()}
    yield within("responses", max(distance(values[device][site], values["cpu"][site]) for site in sites), 1e-5)
    labels = Labels(16, [torch.arange(8), torch.arange(4, 12)])
    score = [average_precision(settle_ties(values[where][sites[0]].to(device)), labels) for where in ("cpu", device)]
    compiled = average_precision(settle_ties(values["cpu"][sites[0]]), labels)
    yield within("average precision, the same responses", float((score[0].cpu() - compiled).abs().max()), 1e-6)
    yield within("average precision, own responses", float((score[1].cpu() - compiled).abs().max()), 1e-2)
    features = torch.randn(400, 16, generator=torch.Generator().manual_seed(4))
    classes = (features[:, :4] + 0.5 * features[:, 4:8]).argmax(1)
    train = (torch.arange(400) % 5 > 0).expand(2, -1)
    fits = [fit_logistic(features.to(where), classes, train, 4) for where in ("cpu", device)]
    reached = [objectives(fit, features, classes, train) for fit in fits]
    yield within("probe, objective", float((reached[1] - reached[0]).abs().max()), 1e-6)
    forcing = {sites[0]: (torch.tensor([1, 5]), torch.tensor([2.0, -1.0]))}
    jobs = [Job((2, 7, 9), seed, forcing) for seed in range(4)]
    texts = [generate(models[where], jobs, Decoding(max_new_tokens=24), end_id=2) for where in ("cpu", device)]
    same = sum(one == two for one, two in zip(*texts, strict=True))
    yield Answer("PASS" if same >= 3 else "FAIL", f"forced texts equal to the CPU's: {same} of 4, at least 3")


def ddp(device: str) -> Iterator[Answer]:
    """Two processes against one with the whole batch: NCCL on two GPUs, else gloo on one device."""
    backend = "nccl" if device == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        work = partial(_rank, device=device, backend=backend, port=port, path=str(Path(folder) / "gradients.pt"))
        torch.multiprocessing.spawn(work, nprocs=2)  # type: ignore[attr-defined]
        found = torch.load(Path(folder) / "gradients.pt", weights_only=True)
    network = tiny_model().to(device)
    network(input_ids=_batch().to(device), labels=_batch().to(device)).loss.backward()
    expected = torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
    yield within(f"DDP over {backend}, gradients of two ranks", distance(found, expected), 1e-5)


def _batch() -> Tensor:
    return torch.randint(4, 512, (8, 64), generator=torch.Generator().manual_seed(5))


def _rank(rank: int, *, device: str, backend: str, port: int, path: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group(backend, rank=rank, world_size=2)
    where = torch.device("cpu" if device == "cpu" else f"cuda:{rank if backend == 'nccl' else 0}")
    network = torch.nn.parallel.DistributedDataParallel(tiny_model().to(where))
    part = _batch().chunk(2)[rank].to(where)
    network(input_ids=part, labels=part).loss.backward()
    if rank == 0:
        torch.save(torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]), path)
    torch.distributed.destroy_process_group()


def fit(device: str) -> Iterator[Answer]:
    """The real command on the smoke configuration; then again, from a checkpoint in its midst."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "trainer.accelerator": "gpu" if device == "cuda" else "cpu",
            "trainer.precision": "bf16-mixed" if device == "cuda" else "32-true",
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": f"{folder}/run",
            "data.tokenizer": f"{folder}/tokenizer",
            "data.cache": f"{folder}/cache",
        }
        command = [sys.executable, "-m", "train", "fit", "--config", "configs/train/smoke.yaml"]
        command += [f"--{key}={value}" for key, value in options.items()]
        for name, more in (("train fit", []), ("train fit, made longer", ["--trainer.max_steps=24"])):
            started = time.monotonic()
            changes = ["--allow_changes=true"] if more else []
            done = subprocess.run([*command, *more, *changes], cwd=ROOT, capture_output=True, text=True)
            last = (done.stderr.strip().splitlines() or [""])[-1][:150]
            missing = "No module named" in done.stderr
            verdict = "PASS" if done.returncode == 0 else "SKIP" if missing else "FAIL"
            seconds = f"{time.monotonic() - started:.0f} s"
            yield Answer(verdict, f"{name}: {seconds if verdict == 'PASS' else last}")
            if verdict != "PASS":
                return


def mfu(device: str) -> Iterator[Answer]:
    """Speed, MFU and peak memory of the 257M training step by micro-batch and optimizer, not compiled."""
    for optimizer in ("adamw", "muon"):
        for batch in (8, 16, 32) if optimizer == "adamw" else (16,):
            yield _speed(device, batch, optimizer, compile=False)


def compile_step(device: str) -> Iterator[Answer]:
    """The same step compiled: what it gains, what its start costs, and that its loss is the plain one's."""
    network, ids = _study_model(device), _study_batch(device, 2)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        plain = network(input_ids=ids, labels=ids).loss
        compiled = torch.compile(network.forward, backend=_compiler(device))(input_ids=ids, labels=ids).loss
    yield within("compiled loss", distance(compiled, plain), 1e-3)
    yield _speed(device, 16, "adamw", compile=True)


def _compiler(device: str) -> str:
    """A dry run goes the same way, without minutes of compiling C++."""
    return "inductor" if device == "cuda" else "eager"


def _study_model(device: str) -> XGLMForCausalLM:
    if device == "cpu":
        return tiny_model()
    torch.manual_seed(1)
    with torch.device(device):
        return XGLMForCausalLM(build_config(dropout=0.0)).train()


def _study_batch(device: str, batch: int) -> Tensor:
    length, vocabulary = (1024, 256_008) if device == "cuda" else (64, 512)
    ids = torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(6))
    return ids.to(device)


def _speed(device: str, batch: int, optimizer: str, *, compile: bool) -> Answer:
    from train.flops import flops_per_token, peak_flops

    name = f"{batch} sequences, {optimizer}, {'compiled' if compile else 'plain'}"
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else time.monotonic
    network, ids = _study_model(device), _study_batch(device, batch)
    stepper = build_optimizer(network, OptimizerOptions(name=optimizer))  # type: ignore[arg-type]
    forward = torch.compile(network.forward, backend=_compiler(device)) if compile else network.forward
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    try:
        for _ in range(13 if device == "cuda" else 3):
            wait()
            started = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                value = forward(input_ids=ids, labels=ids).loss
            value.backward()
            stepper.step()
            stepper.zero_grad()
            wait()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return Answer("FIGURE", f"{name}: out of memory")
    first, seconds = times[0], sorted(times[1:])[len(times[1:]) // 2]
    text = f"{name}: {ids.numel() / seconds:,.0f} tokens/s, first step {first:.0f} s"
    if device == "cuda":
        peak = peak_flops(device)
        share = ids.numel() / seconds * flops_per_token(network.config, ids.shape[1]) / peak if peak else float("nan")
        text += f", MFU {100 * share:.1f} %, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return Answer("FIGURE", text)


PARTS: dict[str, Callable[[str], Iterator[Answer]]] = {
    "machine": machine,
    "loss": loss,
    "model": model,
    "steps": steps,
    "analyses": analyses,
    "ddp": ddp,
    "fit": fit,
    "mfu": mfu,
    "compile": compile_step,
}


def answers(part: str, device: str) -> Iterator[Answer]:
    """What a part says, up to an error, which is the last line."""
    try:
        for answer in PARTS[part](device):
            yield replace(answer, text=f"{part}: {answer.text}")
    except Exception as error:
        traceback.print_exc()
        missing = isinstance(error, ImportError)
        line = " ".join(str(error).split())[:200]
        yield Answer("SKIP" if missing else "FAIL", f"{part}: {type(error).__name__}: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", action="store_true", help="a dry run with small sizes")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    device = "cpu" if options.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --cpu is a dry run")
    failed = False
    for part in options.parts or PARTS:
        for answer in answers(part, device):
            failed |= answer.verdict == "FAIL"
            print(answer, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
