"""What one snapshot of the real run costs, beside what `train describe` predicts.

    python tests/benchmarks/bench_watching.py [--quick]

A random network of the 257M shape (24 x 512, FFN 4096, vocabulary 256,008) is measured by the list of the real run,
with fewer languages, texts and tokens so that it takes minutes on a CPU. Predicted FLOPs become seconds by the rate of
float32 products of this shape in the same run; one thread, CPU time. A ratio of 1 is a prediction that holds, below 1 a
snapshot that costs more. `make bench` collects `run`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from analysis.base import Analysis  # noqa: E402
from analysis.cost import Shape  # noqa: E402
from analysis.measures import build_analyses  # noqa: E402
from analysis.snapshots import Snapshot, SnapshotId  # noqa: E402
from tests.benchmarks.bench_bloom_shape import TEXTS, make_tokenizer  # noqa: E402
from tests.benchmarks.rows import row  # noqa: E402
from train.flops import forward_flops  # noqa: E402
from train.model.xglm import XGLMForCausalLM, build_config  # noqa: E402

LANGUAGES = ["en", "es", "zh"]
SENTENCE = 40


def make_list(concepts: Path) -> list[Analysis]:
    """The real run's analyses on a small share of its texts."""
    # Small batches: a few texts of unequal length would be padded to several times their size in one.
    reading = {"languages": LANGUAGES, "batch_tokens": 256}
    texts = {"texts": str(ROOT / TEXTS), **reading}
    tokens = {"tokens_per_language": 150, "test_tokens_per_language": 75}
    options: dict[str, dict[str, Any]] = {
        "HeldOutLoss": {"max_texts": 10},
        "LanguageProbe": tokens,
        "Alignment": {"num_texts": 20},
        "Compression": {"tokens_per_language": 100},
        "Lape": {"tokens_per_language": 200},
        "ProbeSuite": tokens,
    }
    entries = [{"class_path": name, "init_args": texts | chosen} for name, chosen in options.items()]
    overlap = {"concepts": str(concepts), **reading, "max_positives": 10, "max_negatives": 1}
    return build_analyses([*entries, {"class_path": "ConceptOverlap", "init_args": overlap}])


def product_rate() -> float:
    """FLOPs a second of CPU time of a product as in the blocks of this shape."""
    inputs, weight = torch.randn(1024, 512), torch.randn(4096, 512)
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        for _ in range(10):
            torch.nn.functional.linear(inputs, weight)
        best = max(best, 10 * 2 * 1024 * 512 * 4096 / (time.process_time() - started))
    return best


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows `name, baseline, ours, ratio, unit, note`: predicted and measured seconds of each analysis and of all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(Path(folder), layers=6 if quick else 24)
    finally:
        torch.set_num_threads(before)


def _measure(folder: Path, layers: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    config = build_config(vocab_size=256_008, d_model=512, num_layers=layers, attention_heads=16, ffn_dim=4096)
    model = XGLMForCausalLM(config).eval()
    tokenizer = make_tokenizer(folder, LANGUAGES)
    concepts = folder / "concepts.parquet"
    wanted = ["--max_concepts", "4", "--min_positives", "20", "--cap", "20", "--negatives", "1"]
    command = [sys.executable, "-m", "analysis", "label", "--texts", TEXTS, "--out", str(concepts), "--languages"]
    subprocess.run([*command, *LANGUAGES, *wanted], check=True, cwd=ROOT, capture_output=True)
    flops = forward_flops(config, SENTENCE)
    body = flops.linear + flops.attention
    # The tokenizer of 32,000 tokens decides how many a text has, the model's 256,008 rows what the head costs.
    shape = Shape(layers=layers, width=512, ffn=4096, vocabulary=32_000, body=body, head=flops.head)
    snapshot = Snapshot(SnapshotId("xglm-257m", 0), model, tokenizer)
    rows, totals = [], [0.0, 0.0]
    analyses = make_list(concepts)
    for analysis in analyses:  # once for what is done once a run: tokens of the training split, compiled code
        list(analysis.measure(replace(snapshot, shared={})))
    for analysis in analyses:
        rate = product_rate()
        work = analysis.work(shape)
        assert work is not None
        started = time.process_time()
        list(analysis.measure(snapshot))
        seconds = time.process_time() - started
        totals = [totals[0] + work / rate, totals[1] + seconds]
        rows.append(row(f"predicted, {analysis.name}", work / rate, seconds, "s", f"{work / 1e12:.2f} TFLOP"))
    note = f"{layers} layers of the 257M shape, {len(LANGUAGES)} languages, small samples; random weights, one thread"
    return [row("one snapshot, predicted", totals[0], totals[1], "s", note), *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description="one snapshot of the 257M shape beside its prediction")
    parser.add_argument("--quick", action="store_true", help="6 layers in place of 24")
    for one in run(parser.parse_args().quick):
        print(f"{one['name']:26} {one['baseline']:8.1f} {one['ours']:8.1f} {one['ratio']:6.2f}x  {one['note']}")


if __name__ == "__main__":
    main()
