"""`babelscope train COMMAND` and `babelscope analysis COMMAND`: `python -m train` and `python -m analysis`, anywhere.

`python -m` looks into the working folder first, where a user may have a `train.py` or an `analysis/` of their own. Here
that folder comes last, so that classes of one's own are found (`class_path: my_measure.MyMeasure`) and hide nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

PARTS = {
    "train": "pretrain: init, fit, validate, describe, tokenizer, prepare, audit",
    "analysis": "measure and show: run, report, replay, view, label, steer, checkpoints, publish",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments to `train` or `analysis`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: babelscope {train,analysis} COMMAND [options]\n")
        print("\n".join(f"  {name:10} {about}" for name, about in PARTS.items()))
        return 0 if given else 2
    if given[0] not in PARTS:
        print(f"error: babelscope has no part {given[0]!r}; choose train or analysis", file=sys.stderr)
        return 2
    here = os.getcwd()
    sys.path[:] = [*(path for path in sys.path if path not in ("", here)), here]
    code: int = importlib.import_module(f"{given[0]}.__main__").main(given[1:])
    return code


if __name__ == "__main__":
    raise SystemExit(main())
