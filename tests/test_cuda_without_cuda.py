"""The training step, extraction, ranking, probes and steering on a `cuda` device that computes nothing.

Tensors on two devices in one operation raise here as on a GPU. And every place at which the host waits for the device
stands below, with its count and reason: what is not there, or waits more often, is a hidden `.item()`. The scenarios
run in one process of their own, see `tests/fake_cuda.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fake_cuda import Waits, compile_guard, fake_cuda, prepare  # noqa: E402


def training(optimizer: str) -> dict[str, Waits]:
    from types import SimpleNamespace

    import torch

    from train.metrics import LanguageLoss
    from train.module import LanguageModelingModule
    from train.optim import OptimizerOptions, build_optimizer

    with fake_cuda() as waits:
        module = LanguageModelingModule(
            384, 32, 2, 4, 64, max_position_embeddings=64, optimizer=OptimizerOptions(name=optimizer)
        ).to("cuda:0")
        stepper = build_optimizer(module.model, module.optimizer_options)
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            global_step=3,
            accumulate_grad_batches=2,
            world_size=1,
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        )
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        ids = torch.randint(4, 384, (2, 16)).to("cuda")
        batch = {"input_ids": ids, "labels": ids.clone(), "segment_ids": (ids > 9).long()}
        found = {}
        for name in ("first", "later"):
            waits.clear()
            for index in range(2):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = module.training_step(batch, index)
                assert loss.device.type == "cuda"
                loss.backward()
            module.configure_gradient_clipping(stepper, 1.0, "norm")
            stepper.step()
            stepper.zero_grad()
            found[name] = Waits(waits)
        assert all(parameter.device.type == "cuda" for parameter in module.parameters())
        module.validation_loss = LanguageLoss(1).to("cuda:0")
        waits.clear()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            module.validation_step({**batch, "num_bytes": torch.tensor([3, 4])}, 0)
        found["validation"] = Waits(waits)
    return found


def snapshot() -> Any:
    """A random model of transformers on the device, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, XGLMConfig, XGLMForCausalLM

    from analysis.snapshots import Snapshot, SnapshotId

    words = ("<s>", "<pad>", "</s>", "a", "b", "c")
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    config = XGLMConfig(
        vocab_size=384, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64
    )
    return Snapshot(SnapshotId("fake", 1, tokens=1), XGLMForCausalLM(config).eval().to("cuda:0"), tokenizer)


def extraction() -> dict[str, Waits]:
    """Responses and states of four texts in two and in four batches, and their losses."""
    from dataclasses import replace

    import torch

    from analysis.extraction.losses import token_losses
    from analysis.extraction.options import Extraction
    from analysis.extraction.responses import iter_responses
    from analysis.extraction.sites import find_sites

    found = {}
    with fake_cuda() as waits:
        frozen = snapshot()
        sites = find_sites(frozen.model)
        for name, batch_tokens in (("two", 8), ("four", 4)):
            options = Extraction(batch_tokens=batch_tokens, max_length=16)
            for pool in ("max", "mean", "last"):
                waits.clear()
                for response in iter_responses(frozen, 4 * ["a b c a"], sites, replace(options, pool=pool)):
                    assert response.values.device.type == "cuda"
                found[f"responses_{pool}_{name}"] = Waits(waits)
        encoded = Extraction().encode(frozen, 4 * ["a b c a"])
        (batch,) = Extraction().batches(frozen, encoded)
        waits.clear()
        with torch.no_grad():
            token_losses(frozen.model, batch)
        found["losses"] = Waits(waits)
    return found


def ranking() -> dict[str, Waits]:
    """The search for experts, with halves, in three updates of one site."""
    import torch

    from analysis.concepts.concept_set import ConceptPool, ConceptSet
    from analysis.experts.search import top_units

    half = torch.arange(8)
    names = tuple(map(str, range(16)))
    pools = {
        language: ConceptPool(language, names, names, {"x": half, "y": half + 8}, {"x": half + 8, "y": half})
        for language in ("de", "en")
    }
    found = {}
    with fake_cuda() as waits:
        for name, updates in (("two", 2), ("three", 3)):
            stream = (
                (6 * i, i == updates - 1, [torch.rand(6, 16, device="cuda:0") for _ in range(2)])
                for i in range(updates)
            )
            waits.clear()
            top_units(stream, ConceptSet(("de", "en"), ("x", "y"), pools), 3, halves=True)
            found[name] = Waits(waits)
    return found


def probes() -> dict[str, Waits]:
    """Both probes on the same features; the small one in ten and twenty steps."""
    import torch

    from analysis.probes.logistic import fit_logistic
    from analysis.probes.mlp import fit_mlp

    found = {}
    with fake_cuda() as waits:
        features = torch.rand(40, 8, device="cuda:0")
        labels, train = torch.arange(40) % 4, torch.ones(3, 40, dtype=torch.bool)
        for iterations in (3, 4):
            waits.clear()
            fit_logistic(features, labels, train, 4, max_iterations=iterations)
            found[f"logistic_{iterations}"] = Waits(waits)
        for steps in (10, 20):
            waits.clear()
            scores = fit_mlp(3 * [features], 3 * [labels], list(train), 4, [1, 2, 3], steps=steps, batch=8)
            assert scores[0].device.type == "cuda"
            found[f"mlp_{steps}"] = Waits(waits)
    return found


def steering() -> dict[str, Waits]:
    """Forced generation of 8 and 16 tokens, each text with units of its own, sampled."""
    import torch

    from analysis.extraction.sites import find_sites
    from analysis.steering.generation import Decoding, Job, generate

    found = {}
    with fake_cuda() as waits:
        model = snapshot().model
        site = find_sites(model)[0]
        jobs = [Job((2, 3), seed, {site: (torch.tensor([seed, 5]), torch.ones(2))}) for seed in range(3)]
        for tokens in (8, 16):
            for positions in ("all", "new"):
                waits.clear()
                decoding = Decoding(max_new_tokens=tokens, top_k=5, top_p=0.9)
                texts = generate(model, jobs, decoding, end_id=2, positions=positions)
                assert len(texts) == 3
                found[f"{positions}_{tokens}"] = Waits(waits)
    return found


def spread() -> dict[str, int]:
    """Layers of one checkpoint on two devices, as `loading.device_map` puts them."""
    import torch

    from analysis.geometry.similarity import Similarity
    from analysis.measures.alignment import Alignment
    from analysis.probes.mlp import fit_mlp

    with fake_cuda():
        devices = ("cuda:0", "cuda:1")
        found = [
            Similarity(*(torch.rand(*shape, device=device) for shape in ((1,), (5, 1), (1,), (1, 8))))
            for device in devices
        ]
        rows = Alignment(texts="none.parquet", aggregate="max")._rows("mexa", found, [-1, 0], [("de", "en")])
        features = [torch.rand(40, 8, device=device) for device in devices]
        labels, train = torch.arange(40) % 4, torch.ones(40, dtype=torch.bool)
        scores = fit_mlp(features, 2 * [labels], 2 * [train], 4, [1, 2], steps=2, batch=8)
        return {"rows": len(list(rows)), "scores": len(scores)}


def main(guard: str) -> None:
    prepare(Path(guard))
    found: dict[str, Any] = {f"training_{name}": training(name) for name in ("adamw", "muon")}
    found |= {scenario.__name__: scenario() for scenario in (extraction, ranking, probes, steering, spread)}
    sys.stdout.write(json.dumps(found))


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler to give torch a device with")
    guard = compile_guard(tmp_path_factory.mktemp("guard"))
    done = subprocess.run([sys.executable, __file__, str(guard)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def reads(found: dict[str, int]) -> dict[str, int]:
    """Without the uploads."""
    return {place: count for place, count in found.items() if not place.startswith("upload ")}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_step_waits_once(waits: dict[str, Any], optimizer: str) -> None:
    """For loss, count of labels and gradient norm, in one copy: whether a step counts is decided on the host, the same
    on all ranks. Two micro-batches, loss, masks of packed documents, clipping and both optimizers add nothing."""
    found = waits[f"training_{optimizer}"]
    assert found["first"] == found["later"] == {"train/module.py:configure_gradient_clipping": 1}
    assert found["validation"] == {"upload train/module.py:validation_step": 1}  # bytes of raw text, by batch


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
def test_reading_waits_once_a_site_however_many_batches(waits: dict[str, Any], pool: str) -> None:
    """For the check that responses are finite (2 blocks of 6 linear sites); hooks and pooling never wait. A batch is
    uploaded: its tokens and mask, and for `last` where its texts end; and once the order of the texts."""
    for batches, number in (("two", 2), ("four", 4)):
        assert waits["extraction"][f"responses_{pool}_{batches}"] == {
            "analysis/extraction/passes.py:all_finite": 12,
            "upload analysis/extraction/passes.py:run_body": 2 * number,
            "upload analysis/extraction/responses.py:iter_responses": 1,
            **({"upload analysis/extraction/pooling.py:<lambda>": 2 * number} if pool == "last" else {}),
        }


def test_losses_wait_for_what_is_scored_and_for_the_result(waits: dict[str, Any]) -> None:
    """Once a batch each: losses go to the host by batch, so that the logits of one are held at a time."""
    places = ("token_losses", "<listcomp>")
    assert reads(waits["extraction"]["losses"]) == {f"analysis/extraction/losses.py:{place}": 1 for place in places}


def test_ranking_waits_by_update_not_by_unit_or_concept(waits: dict[str, Any]) -> None:
    """For each language and update of a site's units: are they finite, are some massive (and which), and the scores,
    which the host ranks. `_rows` waits for the responses of units that enter the ranking, few after the first updates.
    """
    found = waits["ranking"]
    for updates, name in ((2, "two"), (3, "three")):
        assert {place: count for place, count in reads(found[name]).items() if not place.endswith(":_rows")} == {
            "analysis/experts/average_precision.py:settle_ties": 3 * 2 * updates,
            "analysis/extraction/passes.py:all_finite": 2 * updates,
            "analysis/experts/search.py:<listcomp>": 2 * updates,
        }
    assert found["three"]["analysis/experts/search.py:_rows"] == found["two"]["analysis/experts/search.py:_rows"]
    # Labels of a language, with both halves, go there once, however many units and concepts come after.
    assert found["three"]["upload analysis/experts/average_precision.py:members_on"] == 2


def test_layers_may_lie_on_several_devices(waits: dict[str, Any]) -> None:
    """Means over layers of the alignment, and the networks that read several layers together."""
    assert waits["spread"] == {"rows": 2 * (2 + 1 + 1), "scores": 2}


def test_probes_wait_for_decisions_of_the_solver_only(waits: dict[str, Any]) -> None:
    """The solver asks at every iteration which problems are done and whether the step size is found; where every answer
    is yes it looks for the step 20 times, in practice once or twice. The network asks before its first step only."""
    found = waits["probes"]
    assert {place.partition(":")[0] for place in reads(found["logistic_3"])} == {
        "analysis/probes/logistic.py",
        "analysis/probes/lbfgs.py",
    }
    assert found["logistic_4"]["analysis/probes/lbfgs.py:_search"] == 4 * 20
    assert reads(found["mlp_10"]) == reads(found["mlp_20"])


@pytest.mark.parametrize("positions", ["all", "new"])
def test_forced_generation_waits_every_eight_tokens(waits: dict[str, Any], positions: str) -> None:
    """To stop when all texts have ended, and once for the texts; forcing itself never waits. What is forced is uploaded
    once, however many tokens are written."""
    for tokens in (8, 16):
        found = waits["steering"][f"{positions}_{tokens}"]
        assert reads(found) == {"analysis/steering/generation.py:_decode": tokens // 8 + 1}
        assert {place: count for place, count in found.items() if place.startswith("upload ")} == {
            "upload analysis/steering/generation.py:_decode": 8,
            "upload analysis/extraction/hooks.py:change": 2,
            "upload analysis/extraction/hooks.py:<genexpr>": 1,
        }


if __name__ == "__main__":
    main(sys.argv[1])
