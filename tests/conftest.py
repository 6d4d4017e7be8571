"""Small random models and a byte tokenizer for all tests. Session fixtures are read-only: copy before changing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XGLMConfig,
    XGLMForCausalLM,
)

from analysis.snapshots import Snapshot, SnapshotId

VOCABULARY = 384
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class WandbSession:
    """One offline session of a W&B run, as W&B's own reader gives it."""

    folder: Path
    history: list[dict]
    """Logged rows; nested keys are dotted."""
    metrics: list[dict]
    """Definitions of metrics."""
    run: dict
    config: dict
    summary: dict
    artifacts: list[str]
    """Types of the artifacts."""
    ended: bool

    @property
    def run_id(self) -> str:
        return self.run.get("run_id") or self.run["runId"]


def read_session(folder: Path) -> WandbSession:
    reader = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]

    def inspect(*options: str) -> str:
        command = [*reader, *options, str(folder)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

    records = [json.loads(line) for line in inspect().splitlines()]
    about = json.loads(inspect("--summary"))
    return WandbSession(
        folder=folder,
        history=[record["history"]["item"] for record in records if record["type"] == "history"],
        metrics=[record["metric"] for record in records if record["type"] == "metric"],
        run=next((record["run"] for record in records if record["type"] == "run"), {}),
        config=about.get("config") or {},
        summary=about.get("summary") or {},
        artifacts=[record["artifact"]["type"] for record in records if record["type"] == "artifact"],
        ended=any(record["type"] == "exit" for record in records),
    )


@pytest.fixture
def wandb_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[WandbSession]]:
    """Reads the sessions of a run folder. No account and no home: what a fresh machine has."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("API_KEY", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)

    def read(root: Path) -> list[WandbSession]:
        folders = sorted((root / "wandb").glob("offline-run-*"))
        return [read_session(folder) for folder in folders if any(f.stat().st_size for f in folder.glob("*.wandb"))]

    return read


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed() -> Iterator[None]:
    """Tests are small: one thread is faster than two, and sums come in the same order everywhere."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte after four special tokens; like XGLM's, it puts `</s>` before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _random(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model with weights large enough that units differ between texts (the default initialisation is near zero)."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.08)
    return model


@pytest.fixture(scope="session")
def tiny_xglm() -> PreTrainedModel:
    config = XGLMConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        **IDS,
    )
    return _random(lambda: XGLMForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_bloom() -> PreTrainedModel:
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, use_cache=False, **(IDS | {"pad_token_id": 1})
    )
    return _random(lambda: BloomForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, use_cache=False, **IDS)
    return _random(lambda: GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def tiny_neox() -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        use_cache=False,
        **IDS,
    )
    return _random(lambda: GPTNeoXForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        use_cache=False,
        **IDS,
    )
    return _random(lambda: LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_snapshot(byte_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Snapshot]:
    """`tiny_snapshot(model, step=0)` wraps a model as a `Snapshot`."""

    def make(model: PreTrainedModel, step: int = 0, run: str = "tiny") -> Snapshot:
        return Snapshot(SnapshotId(run, step, tokens=step * 1024), model, byte_tokenizer)

    return make
