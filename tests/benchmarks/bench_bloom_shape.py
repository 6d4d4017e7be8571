"""BLOOM-560m's true shape through the post-hoc sweep on this machine: time and peak memory.

    python tests/benchmarks/bench_bloom_shape.py [--concepts 4] [--languages en es] [--dtype bfloat16] [--device cuda]

Two revisions with random weights (24 x 1024, vocabulary 250,880; half precision on disk, as the published files) are
saved under build/, named as the hub names them. The sweep then runs as a user would start it, in a process of its own,
over the default list with fewer languages and concepts. Random weights cost what trained ones cost. `--layers`
and `--hidden` give other members of the family (7b1: 30 and 4096).

`make bench` collects `run`.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import pyarrow.parquet as pq  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from analysis.results import ResultTable  # noqa: E402
from tests.benchmarks.rows import row  # noqa: E402

VOCABULARY = 250_880
STEPS = (1000, 10_000)
TEXTS = "data/embedded_cdda10.parquet"


def make_tokenizer(folder: Path, languages: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 32,000 tokens with BLOOM's special tokens, trained on the sample in a few seconds."""
    table = pq.read_table(ROOT / TEXTS, columns=["lang", "text"]).to_pylist()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((row["text"] for row in table if row["lang"] in languages), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_suite(folder: Path, layers: int, hidden: int, heads: int) -> None:
    """Two revisions in float16."""
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=hidden, n_layer=layers, n_head=heads)
    for step in STEPS:
        target = folder / f"global_step{step}"
        if (target / "config.json").is_file():
            continue
        torch.manual_seed(step)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        try:
            BloomForCausalLM(config).save_pretrained(target)
        finally:
            torch.set_default_dtype(default)


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """The shipped list, or those of it that `--only` names, with this benchmark's languages and concepts."""
    listed = yaml.safe_load((ROOT / options.list).read_text())["analyses"]
    listed = [entry for entry in listed if not options.only or entry["class_path"].rsplit(".", 1)[-1] in options.only]
    for entry in listed:
        settings = entry["init_args"]
        settings["languages"] = options.languages
        if "concepts" in settings:
            settings["concepts"] = str(folder / "concepts.parquet")
    source = {
        "class_path": "LocalFolders",
        "init_args": {
            "path": str(folder / "suite"),
            "tokenizer": str(folder / "tokenizer"),
            "prefix_token": "</s>",
            "naming": {"tokens_per_step": 524_288},
            "loading": {"dtype": options.dtype, "device": options.device, "check_tokenizer": False},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"source": source, "analyses": listed, "results": str(folder / "results")}))
    return path


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="configs/analyses/default.yaml", help="the analyses to time")
    parser.add_argument("--only", nargs="+", default=[], help="class names of that list")
    parser.add_argument("--languages", nargs="+", default=["en", "es"])
    parser.add_argument("--concepts", type=int, default=4, help="concepts of the overlap analysis, 40 positives each")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[dict]:
    """Prepare and sweep; a row for every analysis, the whole sweep and the peak memory."""
    folder = ROOT / "build" / f"bloom_{options.layers}x{options.hidden}"
    make_suite(folder / "suite", options.layers, options.hidden, options.heads)
    make_tokenizer(folder / "tokenizer", options.languages)
    label = [sys.executable, "-m", "analysis", "label", "--texts", TEXTS, "--list", "data/concepts.tsv", "--complete"]
    label += ["--out", str(folder / "concepts.parquet"), "--max_concepts", str(options.concepts), "--cap", "40"]
    subprocess.run([*label, "--languages", *options.languages], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "analysis", "run", "--config", str(write_config(folder, options))]
    shutil.rmtree(folder / "results", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    what = f"{options.layers} x {options.hidden}, {options.dtype}, {options.device}, {', '.join(options.languages)}"
    table = ResultTable(folder / "results")
    seconds: dict[str, list[float]] = {}
    for step, name in table.entries():
        seconds.setdefault(name, []).append((table.stamp(step, name) or {})["seconds"])
    rows = [row(name, None, sum(values) / len(values), "s a checkpoint", what) for name, values in seconds.items()]
    rows.append(
        row("whole sweep", None, wall / len(STEPS), "s a checkpoint", f"{cpu / len(STEPS):.0f} s CPU each; {what}")
    )
    # Linux gives ru_maxrss in KiB. It is the largest child, and the sweep is.
    rows.append(row("peak memory", None, after.ru_maxrss / 2**20, "GiB", "of the whole process, weights included"))
    return rows


def run(quick: bool) -> list[dict]:
    """Time and memory have no baseline here: rows with `ours` alone."""
    small = ["--layers", "4", "--hidden", "256", "--heads", "4", "--concepts", "2"]
    return measure(parse(small if quick else []))


if __name__ == "__main__":
    for one in measure(parse()):
        print(f"{one['name']:16} {one['ours']:8.1f} {one['unit']:16} {one['note']}")
