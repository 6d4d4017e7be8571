"""The model card of a run on the hub, made from the run: what it is, its revisions, what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from analysis.report.chapters.methods import methods
from analysis.report.report import verdicts
from analysis.report.run import RunRecord
from analysis.snapshots import SnapshotId


def model_card(record: RunRecord, repo: str, published: Sequence[SnapshotId], license_name: str | None) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        published: snapshots that are revisions `step-N` of `repo`.
        license_name: identifier of the hub such as `apache-2.0`; None says nothing.
    """
    data = record.config.get("data") or {}
    languages = sorted(data.get("languages") or set(record.frame["language"].dropna()))
    front: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if languages:
        front["language"] = languages
    if license_name:
        front["license"] = license_name
    front["tags"] = ["babelscope", "multilingual", "training-dynamics"]
    last = published[-1]
    rows = "\n".join(f"| `step-{one.step}` | {one.step:,} | {_tokens(one.tokens)} |" for one in published)
    found = "\n".join(f"- {sentence}" for sentence in verdicts(record)) or "Nothing was measured yet."
    said = "\n\n".join(methods(record))
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {record.name}

A multilingual language model with its checkpoints over training, made to study how languages come to share neurons.
It is a research artefact, neither tuned nor filtered for use.

## Revisions

`main` is step {last.step:,}. Every other snapshot is a revision:

| revision | step | tokens seen |
|---|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}", revision="step-{published[0].step}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```

All of them as a suite for Babelscope:

```yaml
source:
  class_path: HubRevisions
  init_args:
    repo: {repo}
```

## What was measured

{found}

## Methods

{said}
"""


def _tokens(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"
