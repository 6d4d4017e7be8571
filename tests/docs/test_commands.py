"""Every command of the documents does what it says: run on a small run, or parsed, and then the list says why."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.test_docs import DOCUMENTS, OWN, ROOT, WALKED, blocks

LABEL = "python -m analysis label --texts data/embedded_cdda10.parquet --out"
XGLM, DEMO = "--config configs/train/xglm_257m.yaml", "--config configs/train/demo.yaml"
STEER, BLOOM = "--config configs/analyses/steering.yaml", "--config configs/suites/bloom_560m.yaml"
EIGHT = "--trainer.devices 8 --trainer.accumulate_grad_batches 1"

RUN = (
    f"{LABEL} runs/demo-concepts.parquet --concepts armor eat fire large leather metal road_vehicle small steel water "
    "weather_f wood --min_positives 50 --cap 50 --negatives 3 --complete "
    "--independent",
    f"{LABEL} runs/bloom-concepts.parquet --languages en es pt zh --independent",
    f"python -m train describe {XGLM}",
    f"python -m train tokenizer {DEMO}",
    f"python -m train prepare {XGLM} --workers 16",
    f"python -m train audit {DEMO} --examples 2",
    f"python -m train fit {XGLM}",
    f"python -m train fit {DEMO}",
    "python -m analysis report runs/demo",
    "python -m analysis report runs/demo --steps 64 640",
    f"python -m analysis steer {STEER} --dry_run",
    f"python -m analysis steer {STEER}",
    f"python -m analysis steer {STEER} --source.path runs/other --steps all",
    "python -m analysis replay runs/demo",
    f"python -m analysis checkpoints {BLOOM}",
    f"python -m analysis run {BLOOM}",
    "python -m analysis report runs/demo results/bloom-560m-intermediate",
)
"""In an order in which each finds what it needs."""
SMALLER = {
    "--workers 16": "--workers 1",
    "--steps 64 640": "--steps 0 16",
    "--min_positives 50": "--min_positives 10 --min_support 0",
}

PARSED = {
    "make demo": "installs; what it then does is in RUN",
    "make demo-steering": "the same",
    "make bloom-concepts": "the same",
    "make test": "this",
    f"python -m train fit {XGLM} {EIGHT}": "eight GPUs",
    f"torchrun --standalone --nproc-per-node 8 -m train fit {XGLM} {EIGHT}": "eight GPUs",
    "python -m analysis run --config configs/suites/smollm2_135m.yaml": "weights to download; an optin test",
    "python -m analysis report runs/demo --watch": "never ends; run in analysis/report/test_report.py",
    "python -m analysis report runs/demo --format pdf": "needs Chromium; run in analysis/report/test_page.py",
    "python -m analysis report results/bloom-560m-intermediate results/bloom-7b1-intermediate": "as the last of RUN",
    "python -m analysis report --capacity runs/capacity/small-*": "run in analysis/report/capacity/test_page.py",
    "python -m analysis replay results/bloom-560m --mode online": "a W&B account",
    "python -m analysis view runs/demo --entity my-team": "a W&B account; run in analysis/tracking/test_view.py",
    "configs/capacity/run.sh cpu": "47 minutes; its runs are made in configs/test_capacity.py",
    "configs/capacity/run.sh small": "a GPU",
    "configs/capacity/run.sh full": "GPUs, and text of one's own",
    "studies/first_light/run.sh": "days; its parts are run in tests/studies",
    "studies/first_light/run.sh analyses": "days",
    "studies/first_light/run.sh publish": "the results of that",
    "studies/first_light/run.sh --tables": "the results of that",
}
"""Command to why it is not run."""

QUOTED = re.compile(
    r"(?:\w+=(?:\"[^\"]*\"|\S+) )*((?:python3? -m (?:train|analysis|callbacks|data)|torchrun|make |\w+/\S+\.sh).*)"
)


def quoted_commands() -> list[str]:
    """Every command line in a block of the documents, spaces made one, and what the quoted targets of make run."""
    found = []
    for path in (page for page in DOCUMENTS if page.name not in WALKED):
        text = path.read_text(encoding="utf-8")
        indented = "\n".join(re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE))
        for block in (*blocks(text), indented):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.partition(" #")[0].strip().removeprefix("srun ").removeprefix("$ ")
                if OWN not in command and (match := QUOTED.fullmatch(command)):
                    found.append(" ".join(match[1].split()))
    found += [line for target in found if target.startswith("make ") for line in recipe(target)]
    return list(dict.fromkeys(found))


def recipe(target: str) -> list[str]:
    """The commands of this project that a target of make would run; nothing is run."""
    words = ["make", "--dry-run", "--always-make", *target.split()[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = re.findall(r"\S*/(python -m (?:train|analysis) .*)", done.stdout.replace("\\\n", " "))
    return [" ".join(line.split()) for line in lines]


def test_every_quoted_command_is_listed_here() -> None:
    assert sorted(quoted_commands()) == sorted([*RUN, *PARSED])


# running -------------------------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(options)
    path.write_text(yaml.safe_dump(options), encoding="utf-8")


def small_training(analyses: str) -> Callable[[dict[str, Any]], None]:
    """The model, text and length of configs/train/smoke.yaml in another configuration."""
    smoke = yaml.safe_load((ROOT / "configs" / "train" / "smoke.yaml").read_text(encoding="utf-8"))

    def edit(options: dict[str, Any]) -> None:
        trainer = options["trainer"]
        options["model"] = smoke["model"]
        options["data"] |= {**smoke["data"], "cache": "runs/cache", "languages": ["en", "es", "pt", "zh"]}
        options["data"] |= {"tokenizer": f"{trainer['default_root_dir']}-tokenizer", "num_workers": 0}
        trainer |= {"accelerator": "cpu", "precision": "32-true", "accumulate_grad_batches": 1}
        trainer |= {"max_steps": 16, "val_check_interval": 16}
        for callback in trainer["callbacks"]:
            given = callback.get("init_args", {})
            given |= {"schedule": {"base": None, "steps": [0]}} if "schedule" in given else {}
            given |= {"analyses": f"configs/analyses/{analyses}"} if "analyses" in given else {}

    return edit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the repository's, with less text, smaller models and shorter lists under the same names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    shutil.copytree(ROOT / "configs", "configs")
    Path("data").mkdir()
    shutil.copy(ROOT / "data" / "concepts.tsv", "data")
    text = pd.read_parquet(ROOT / "data" / "embedded_cdda10.parquet")
    text = text[text["lang"].isin(["en", "es", "pt", "zh"])]
    keys = text[["doc", "sent_id"]].drop_duplicates().sample(2000, random_state=0)
    text.merge(keys, on=["doc", "sent_id"]).to_parquet("data/embedded_cdda10.parquet")
    texts = {"texts": "data/embedded_cdda10.parquet", "max_texts": 8, "max_length": 32, "num_bootstrap": 20}
    loss = {"class_path": "HeldOutLoss", "init_args": texts}
    few = {"share": 0.05, "bootstrap": 20, "shuffles": 2, "surface": False, "max_positives": 10, "max_negatives": 2}
    overlap = {"class_path": "ConceptOverlap", "init_args": {"concepts": "runs/demo-concepts.parquet", **few}}
    configs = Path("configs")
    change(configs / "analyses" / "default.yaml", lambda options: options.update(analyses=[loss, overlap]))
    for name in ("bloom.yaml", "xglm_257m.yaml"):
        change(configs / "analyses" / name, lambda options: options.update(analyses=[loss]))
    held = {"only_concepts": ["small", "metal"], "languages": ["en", "es"], "share": [0.05], "seeds": 1}
    held |= {"max_new_tokens": 4}
    change(configs / "analyses" / "steering.yaml", lambda options: options["analyses"][0]["init_args"].update(held))
    change(configs / "train" / "demo.yaml", small_training("default.yaml"))
    change(configs / "train" / "xglm_257m.yaml", small_training("xglm_257m.yaml"))
    suite = {"class_path": "LocalFolders", "init_args": {"path": "suite", "run": "bloom-560m-intermediate"}}
    change(configs / "suites" / "bloom_560m.yaml", lambda options: options.update(source=suite))
    yield tmp_path


def prepare_for(command: str) -> None:
    """What a command needs that no other command of the list makes."""
    if "describe" in command:
        shutil.copy("runs/demo-concepts.parquet", "runs/xglm_257m-concepts.parquet")
    if "runs/other" in command:
        Path("runs/other").symlink_to("xglm_257m")
    if "analysis checkpoints" in command:
        for step in (0, 16):
            shutil.copytree(f"runs/demo/snapshots/step_{step:08d}", f"suite/global_step{step}")


def test_the_commands_of_the_documents_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in RUN:
        prepare_for(command)
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        module, *arguments = shlex.split(command)[2:]
        code = importlib.import_module(f"{module}.__main__").main(arguments)
        said = capsys.readouterr()
        assert code == 0, f"{command}: {said.err[-1000:]}"
    for made in ("runs/xglm_257m/snapshots/step_00000016", "runs/demo/report.html", "runs/demo/steps_0_16.html"):
        assert Path(made).exists()
    assert Path("runs/other/results/step_00000016/steering.parquet").is_file()


# parsing -------------------------------------------------------------------------------------------------------------


def check_command(command: str) -> None:
    """Parse a command line as the program would, up to the point at which it would begin to work."""
    words = shlex.split(command)
    if words[0] == "make":
        recipe(command)
    elif words[0].endswith(".sh"):
        assert os.access(words[0], os.X_OK), command
        assert all(word in Path(words[0]).read_text(encoding="utf-8") for word in words[1:]), command
    else:
        place = words.index("-m")
        module, arguments = words[place + 1], words[place + 2 :]
        for word in arguments:
            if word.endswith((".yaml", ".yml")) and not word.startswith("runs/"):
                assert Path(word).is_file(), f"{word} does not exist: {command}"
        {"train": _train, "analysis": _analysis}[module](arguments)


def _train(arguments: list[str]) -> None:
    from train.__main__ import COMMANDS
    from train.cli import ParsedRun

    assert arguments[0] in COMMANDS, arguments[0]
    ParsedRun(arguments)


def _analysis(arguments: list[str]) -> None:
    from analysis.__main__ import make_parser

    make_parser(arguments[0]).parse_args(arguments[1:])


@pytest.mark.parametrize("command", PARSED)
def test_what_is_not_run_is_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command)


def test_a_command_that_does_not_exist_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = ("python -m train fit --config configs/train/smoke.yaml --trainer.steps 3", "make deno")
    wrong += ("configs/capacity/run.sh tiny", "studies/second_light/run.sh")
    for command in (*wrong, "python -m train fit --config configs/none.yaml", "python -m analysis reprot runs/demo"):
        with pytest.raises((Exception, SystemExit)):
            check_command(command)


def test_benchmarks_have_the_options_that_the_documents_give_them() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = re.findall(r"`python\s+(tests/benchmarks/\w+\.py)([^`]*)`", text)
    assert len(named) > 5
    for script, options in named:
        source = (ROOT / script).read_text(encoding="utf-8")
        assert not [option for option in re.findall(r"--\w+", options) if f'"{option}"' not in source], script
