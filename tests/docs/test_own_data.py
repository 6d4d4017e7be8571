"""docs/own_data.md walks: every command of the page is run in its order, in a folder with the files that it names."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "own_data.md"
WORDS = {
    "en": ("water", "the old man walks far over green hills"),
    "es": ("agua", "el viejo hombre anda lejos sobre cerros"),
    "de": ("wasser", "der alte mann geht weit ueber gruene"),
}
SMALL = {
    "LanguageProbe": {"tokens_per_language": 100, "test_tokens_per_language": 50, "seeds": [0]},
    "ProbeSuite": {"tokens_per_language": 100, "test_tokens_per_language": 50, "seeds": [0]},
    "Compression": {"tokens_per_language": 100},
    "Lape": {"tokens_per_language": 200, "shuffles": 2},
}


def commands(page: Path = PAGE) -> list[list[str]]:
    """Every command line of a page, in order."""
    text = "\n".join(re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    lines = [line.partition("  #")[0].split("          #")[0].strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python -m")]


def text_of(language: str, count: int) -> list[str]:
    word, filler = WORDS[language]
    generator = random.Random(language)
    drawn = (" ".join(generator.sample(filler.split(), 6)) for _ in range(count))
    return [f"{line}{f' {word}' if place % 5 == 0 else ''} {place}" for place, line in enumerate(drawn)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The files that the page names: text, translations, lists, and checkpoints of the three kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "text").mkdir()
    for language, (word, _) in WORDS.items():
        Path(f"text/{language}.txt").write_text("\n".join(text_of(language, 400)), encoding="utf-8")
        Path(f"concepts_{language}.tsv").write_text(f"water\tword\t{word}\n", encoding="utf-8")
    Path("concepts.tsv").write_text("water\tword\twater waters\n", encoding="utf-8")
    pd.DataFrame({language: text_of(language, 300) for language in ("en", "es")}).to_parquet("parallel.parquet")
    long = [{"lang": language, "text": text} for language in ("en", "es") for text in text_of(language, 300)]
    pd.DataFrame(long).to_json("text.jsonl", orient="records", lines=True)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(byte_tokenizer), hidden_size=32, n_layer=2, n_head=4))
    for name in ("models/final", "output/checkpoint-100", "output/checkpoint-200"):
        model.save_pretrained(name)
        byte_tokenizer.save_pretrained(name)
    Path("lightning/checkpoints").mkdir(parents=True)
    state = {f"net._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, "lightning/checkpoints/last.ckpt")
    return tmp_path


def shrink() -> None:
    """Measures small enough for a test."""
    listed = Path("configs/mine/analyses.yaml")
    entries = yaml.safe_load(listed.read_text(encoding="utf-8"))["analyses"]
    for entry in entries:
        entry["init_args"] |= SMALL.get(entry["class_path"], {})
    listed.write_text(yaml.safe_dump({"analyses": entries}), encoding="utf-8")


def test_the_page_is_walked_from_text_to_the_report_of_ones_own_checkpoints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import analysis.__main__
    import train.__main__
    from train.cli import ParsedRun

    said = commands()
    assert [words[2:4] for words in said].count(["train", "init"]) == 4
    for words in said:
        module, command, *rest = words[2:]
        if command == "fit":  # run in tests/train/own/test_command.py
            assert ParsedRun(["fit", *rest]).run.model.vocab_size == 512
            shrink()
        elif command == "publish":  # run in tests/analysis/checkpoints/test_publishing.py
            analysis.__main__.make_parser(command).parse_args(rest)
        else:
            program = {"train": train.__main__, "analysis": analysis.__main__}[module]
            assert program.main([command, *rest]) == 0, (words, capsys.readouterr().out)
    steps = {
        name: sorted(path.name for path in Path("results", name).glob("step_*")) for name in ("output", "lightning")
    }
    assert steps == {"output": ["step_00000100", "step_00000200"], "lightning": ["step_00000007"]}
    one, other = (
        pd.read_parquet(f"results/{place}/held_out.parquet")
        for place in ("final/step_00000001", "lightning/step_00000007")
    )
    assert one["value"].tolist() == other["value"].tolist()  # the same weights, whatever holds them
    assert Path("results/output/report.html").is_file()
    assert set(pd.read_parquet("runs/mine-concepts.parquet")["language"]) == {"en", "es"}


def test_the_two_commands_of_the_readme_fit_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train.__main__
    from train.cli import ParsedRun

    init, fit = (words for words in commands(ROOT / "README.md") if "configs/mine.yaml" in words)
    assert train.__main__.main(init[3:]) == 0, capsys.readouterr().err
    assert len(ParsedRun(fit[3:]).run.data.sources) == 1
