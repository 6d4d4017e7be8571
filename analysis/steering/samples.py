"""What a model writes by itself: held-out texts of every language, begun and continued, beside their true continuation.

A few texts a language, always the same ones and with the same draws, so that the lines of two snapshots can be read
side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from analysis.snapshots import Snapshot
from analysis.steering.generation import Decoding, Job, encode_prompt, generate

PROMPT_TOKENS, NEW_TOKENS = 8, 32


def sample_table(snapshot: Snapshot, tokens: Mapping[str, Sequence[Sequence[int]]], per_language: int) -> pa.Table:
    """One row a text: language, prompt, text (what the model writes), reference (how the text goes on).

    Args:
        tokens: content tokens of held-out texts by language; the first that are longer than the prompt are taken.
    """
    try:
        start = encode_prompt(snapshot.tokenizer, "", None)
    except ValueError:  # a tokenizer without a start token
        start = ()
    room = getattr(snapshot.model.config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS + 1
    decoding = Decoding(max_new_tokens=max(1, min(NEW_TOKENS, room - PROMPT_TOKENS - len(start))))
    chosen = [
        (language, list(text))
        for language, texts in tokens.items()
        for text in [text for text in texts if len(text) > PROMPT_TOKENS][:per_language]
    ]
    jobs = [Job(prompt=(*start, *text[:PROMPT_TOKENS]), seed=number) for number, (_, text) in enumerate(chosen)]
    written = generate(snapshot.model, jobs, decoding, end_id=snapshot.tokenizer.eos_token_id) if jobs else []
    return pa.table(
        {
            "language": [language for language, _ in chosen],
            "prompt": [_text(snapshot, text[:PROMPT_TOKENS]) for _, text in chosen],
            "text": [_text(snapshot, new) for new in written],
            "reference": [
                _text(snapshot, text[PROMPT_TOKENS : PROMPT_TOKENS + decoding.max_new_tokens]) for _, text in chosen
            ],
        },
        schema=pa.schema([(name, pa.string()) for name in ("language", "prompt", "text", "reference")]),
    )


def _text(snapshot: Snapshot, tokens: Sequence[int]) -> str:
    """Text of token ids; those of a cloned language are read as its original's."""
    size = len(snapshot.tokenizer)
    return str(snapshot.tokenizer.decode([token % size for token in tokens], skip_special_tokens=True))
