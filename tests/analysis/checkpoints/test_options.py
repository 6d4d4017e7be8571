"""bfloat16 is not recommended, and not used in silence, where the processor emulates it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.checkpoints.loading import load_model
from analysis.checkpoints.local import LocalFolder
from analysis.checkpoints.options import Loading, computes_bf16
from analysis.checkpoints.sweep import Task


def set_processor(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: native, raising=False)


@pytest.mark.parametrize("native", [True, False])
def test_the_hint_on_memory_and_the_warning_follow_the_processor(
    native: bool,
    tmp_path: Path,
    tiny_bloom: PreTrainedModel,
    byte_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    set_processor(monkeypatch, native)
    assert computes_bf16(torch.device("cpu")) is native
    tiny_bloom.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    source = LocalFolder(path=tmp_path, loading=Loading(device="cpu"))
    hint = Task(source=source, checkpoint=source.checkpoints()[0], analyses=(), results=tmp_path)._told(MemoryError())
    assert hint.startswith("out of memory; try a smaller batch_tokens, ")
    assert ("bfloat16" in hint) is native
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path, "tiny", Loading(device="cpu", dtype="bfloat16"))
    assert ("emulated" in caplog.text) is not native
