"""Batched generation with forced units against the loop of ml-selfcond: one seed at a time, the same hooks and cache.

Both sides let the same model write 40 tokens from its start token with the same units held, on one thread; the baseline
is one `generate` of transformers per seed, sampling with transformers' own code, as in ml-selfcond's generate_seq.py
(Suau et al., ICML 2022). The second row is the price of forcing itself: forced against plain, both batched.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.extraction.hooks import force_units
from analysis.extraction.sites import Site, UnitSpace, find_sites
from analysis.steering.generation import Decoding, Job, generate
from tests.benchmarks.rows import row
from train.model.xglm import XGLMForCausalLM, build_config

START, NEW_TOKENS = 2, 40
log = logging.getLogger(__name__)


def demo_model() -> PreTrainedModel:
    """The shape of configs/train/demo.yaml with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "d_model": 128, "num_layers": 6, "attention_heads": 4, "ffn_dim": 1024}
    return XGLMForCausalLM(build_config(**sizes, max_position_embeddings=512)).eval()


def random_forcing(model: PreTrainedModel, k: int) -> dict[Site, tuple[Tensor, Tensor]]:
    """`k` units drawn from all sites."""
    space = UnitSpace(find_sites(model))
    drawn = torch.randperm(space.num_units, generator=torch.Generator().manual_seed(0))[:k].sort().values.numpy()
    sites = space.site_indices(drawn)
    forcing = {}
    for index in sorted(set(sites.tolist())):
        units = torch.from_numpy(drawn[sites == index] - space.offsets[index])
        forcing[space.sites[index]] = units, torch.full((len(units),), 0.5)
    return forcing


def one_seed_at_a_time(model: PreTrainedModel, forcing: Mapping[Site, tuple[Tensor, Tensor]], seeds: int) -> None:
    prompt = torch.tensor([[START]])
    with force_units(model, forcing):
        for seed in range(seeds):
            torch.manual_seed(seed)
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=0.8,
                top_k=0,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                use_cache=True,
                pad_token_id=1,
            )


def run(quick: bool) -> list[dict]:
    """Seconds per text: the loop against batches, and plain against forced batches; interleaved, medians."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(rounds=3 if quick else 7, alone=4 if quick else 8)
    finally:
        torch.set_num_threads(threads)


def _run(rounds: int, alone: int) -> list[dict]:
    model = demo_model()
    forcing = random_forcing(model, 500)
    decoding = Decoding(max_new_tokens=NEW_TOKENS)
    batch = 128

    def batched(held: dict | None) -> None:
        jobs = [Job((START,), seed, held) for seed in range(batch)]
        generate(model, jobs, decoding, end_id=None, batch_size=batch)

    def several() -> None:  # four forcings in one batch, as a list of concepts gives them
        copies = [dict(forcing) for _ in range(4)]
        jobs = [Job((START,), seed, copies[seed * 4 // batch]) for seed in range(batch)]
        generate(model, jobs, decoding, end_id=None, batch_size=batch)

    sides: dict[str, tuple[Callable[[], None], int]] = {
        "loop": (lambda: one_seed_at_a_time(model, forcing, alone), alone),
        "plain": (lambda: batched(None), batch),
        "forced": (lambda: batched(forcing), batch),
        "several": (several, batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (side, texts) in sides.items():
            started = time.process_time()
            side()
            if number:  # the first round warms up
                seconds[name].append((time.process_time() - started) / texts)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # neighbours in time are compared, so that another load on the machine falls on both
    cost = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)) - 1
        for name in ("forced", "several")
    }
    plain = median["plain"] * 1e3
    costs = f"{100 * cost['forced']:+.1f} %; with four forcings in a batch {100 * cost['several']:+.1f} %"
    return [
        row(
            "forced generation, 500 units of the demo model, 40 tokens",
            median["loop"] * 1e3,
            median["forced"] * 1e3,
            "ms/text",
            f"one seed at a time against batches of {batch}; CPU time, one thread",
        ),
        row("what forcing costs: plain against forced", plain, plain * (1 + cost["forced"]), "ms/text", costs),
    ]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for row in run(quick=True):
        log.info("%s", row)
