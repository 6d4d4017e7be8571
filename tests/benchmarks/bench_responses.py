"""Responses of all units of BLOOM-560M: the published way against packs, buckets and pooling inside the hook.

    python tests/benchmarks/bench_responses.py [--quick]

The published way (ml-selfcond): sentences padded to 128 tokens, the whole model with its vocabulary head, hooks that
keep every activation of the batch, pooled afterwards. Random weights of the true shape (24 x 1024, vocabulary 250,880),
float32. Speed: both take turns in one process, one thread, CPU time, medians. Memory: each in a process of its own,
peak above the loaded model.

`make bench` collects `run`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from analysis.extraction.responses import iter_responses  # noqa: E402
from analysis.extraction.sites import find_sites  # noqa: E402
from analysis.snapshots import Snapshot, SnapshotId  # noqa: E402
from tests.benchmarks.peak import peak_here  # noqa: E402
from tests.benchmarks.rows import row  # noqa: E402

PADDED = 128
BATCH = 10
METHODS = ("selfcond", "ours")


def build() -> Snapshot:
    """The true shape with random weights, and a tokenizer with one token a letter."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16, use_cache=False)
    model = BloomForCausalLM(config).eval()
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=4)}
    backend = Tokenizer(models.BPE(vocab={"<pad>": 3, "<unk>": 0, **letters}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    return Snapshot(SnapshotId("bloom-560m", 0), model, tokenizer)


def make_texts(count: int) -> list[str]:
    """Sentences of 8 to 76 tokens, 32 on average."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(6.0, 32.0 / 6.0, size=count).astype(int), 8, 76)
    return ["".join(generator.choice(list("abcdefgh "), size=length)) for length in lengths]


def selfcond(snapshot: Snapshot, texts: list[str]) -> dict[str, torch.Tensor]:
    """Max-pooled responses (U, N) by module; padding enters the maximum, as published."""
    modules = dict(snapshot.model.named_modules())
    pooled: dict[str, list[torch.Tensor]] = {site.module: [] for site in find_sites(snapshot.model)}
    for first in range(0, len(texts), BATCH):
        batch = snapshot.tokenizer(
            texts[first : first + BATCH], padding="max_length", max_length=PADDED, return_tensors="pt"
        )
        kept: dict[str, torch.Tensor] = {}
        handles = [
            modules[name].register_forward_hook(
                lambda _module, _args, output, name=name, kept=kept: kept.update({name: output})
            )
            for name in pooled
        ]
        with torch.no_grad():
            snapshot.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for handle in handles:
            handle.remove()
        for name, output in kept.items():
            pooled[name].append(output.amax(1))
    return {name: torch.cat(parts).T for name, parts in pooled.items()}


def ours(snapshot: Snapshot, texts: list[str]) -> dict[str, torch.Tensor]:
    stream = iter_responses(snapshot, texts, find_sites(snapshot.model))
    return {responses.site.module: responses.values for responses in stream}


def extract(method: str, snapshot: Snapshot, texts: list[str]) -> dict[str, torch.Tensor]:
    return (selfcond if method == "selfcond" else ours)(snapshot, texts)


def measure_speed(rounds: int, count: int) -> dict[str, Any]:
    """Median CPU seconds of both methods in turns, and how many responses padding changes in the published way."""
    snapshot, texts = build(), make_texts(count)
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    results: dict[str, dict[str, torch.Tensor]] = {}
    for method in METHODS:
        extract(method, snapshot, texts[:2])
    for _ in range(rounds):
        for method in METHODS:
            started = time.process_time()
            results[method] = extract(method, snapshot, texts)
            times[method].append(time.process_time() - started)
    differ = [
        ((one - results["ours"][name]).abs() > 1e-3).float().mean().item() for name, one in results["selfcond"].items()
    ]
    seconds = {method: statistics.median(measured) for method, measured in times.items()}
    return {"seconds": seconds, "count": count, "differ": statistics.mean(differ)}


def measure_memory(method: str, count: int) -> dict[str, Any]:
    """Peak above the loaded model, in GB, of what a batch needs: pooled results are not kept."""
    snapshot, texts = build(), make_texts(count)

    def work() -> None:
        if method == "selfcond":
            selfcond(snapshot, texts)
        else:
            for _ in iter_responses(snapshot, texts, find_sites(snapshot.model)):
                pass

    return {"extra_gb": peak_here(work)}


def in_own_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return json.loads(output.splitlines()[-1])


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows `name, baseline, ours, ratio, unit, note`; a ratio above 1 is in our favour."""
    count = 20 if quick else 100
    speed = in_own_process("--speed", str(1 if quick else 2), "--count", str(count))
    baseline, mine = (count / speed["seconds"][method] for method in METHODS)
    note = f"BLOOM-560M shape, fp32, {count} sentences, 1 thread, CPU time; padding changes "
    note += f"{100 * speed['differ']:.1f} % of the published values"
    rows = [row("extraction, speed", baseline, mine, "sentences/s", note)]
    memory = [in_own_process("--memory", method, "--count", str(count))["extra_gb"] for method in METHODS]
    note = "peak above the loaded model"
    rows.append(row("extraction, memory", *memory, "GB", note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Responses of all units: ml-selfcond's way against ours")
    parser.add_argument("--quick", action="store_true", help="one round, 20 sentences")
    parser.add_argument("--speed", type=int, metavar="ROUNDS", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=20, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.speed is not None:
        print(json.dumps(measure_speed(options.speed, options.count)))
    elif options.memory is not None:
        print(json.dumps(measure_memory(options.memory, options.count)))
    else:
        for row in run(options.quick):
            print(
                f"{row['name']:24} {row['baseline']:10.3f} {row['ours']:10.3f} {row['unit']:12} "
                f"{row['ratio']:6.2f}x  {row['note']}"
            )


if __name__ == "__main__":
    main()
