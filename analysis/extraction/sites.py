"""Where units live: module outputs ("sites") and the flat space of their units.

Architecture differences stay in one table of names; nothing else in the repository asks what a model is called. What
counts as a unit follows lang_neuron (Kojima et al., NAACL 2024), the extension of ml-selfcond (Suau et al., ICML 2022)
to XGLM and BLOOM: the outputs of all linear modules of a block.

Shapes:  U units of one site   A all units of a `UnitSpace`   D hidden size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

INPUT_KINDS = frozenset({"mlp.act", "embed"})
"""Kinds whose units are the *input* of the named module: where the value is no module's output, it is read there."""

SITE_SETS: Mapping[str, tuple[str, ...]] = {
    "linear": ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.out", "mlp.gate", "mlp.in", "mlp.out"),
    "mlp_act": ("mlp.act",),
    "residual": ("resid",),
    "hidden": ("embed", "resid"),
}
"""Named sets of kinds; a set holds whichever of its kinds the architecture has.

`linear`: all linear outputs of a block, 9 D per BLOOM block and 4 D + F + D per XGLM block. `mlp_act`: after the
nonlinearity (for gated blocks the product of gate and value). `residual`: the residual stream after every block.
`hidden`: the same and the embeddings, as `output_hidden_states` of transformers but before the final norm.
"""

KINDS = tuple(dict.fromkeys(kind for kinds in SITE_SETS.values() for kind in kinds))


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One module's output (or input, see `INPUT_KINDS`): the coordinates of its last dimension are the units."""

    layer: int
    """Block index from 0; -1 is the embedding output."""
    kind: str
    """`attn.q/k/v/qkv/out`, `mlp.gate/in/act/out`, `resid` or `embed`, see `KINDS`."""
    module: str
    """Dotted path of the module at which the units are read, from the model that was passed to `find_sites`."""
    num_units: int


@dataclass(frozen=True)
class UnitSpace:
    """Ordered sites; flat unit ids run from 0 to `num_units` - 1 in site order.

    Expert sets of two languages or two steps may be compared only if their spaces are equal.
    """

    sites: tuple[Site, ...]

    @property
    def num_units(self) -> int:
        return sum(site.num_units for site in self.sites)

    @cached_property
    def offsets(self) -> np.ndarray:
        """First flat id of every site, and `num_units` at the end, (len(sites) + 1,) int64."""
        return np.concatenate([[0], np.cumsum([site.num_units for site in self.sites], dtype=np.int64)])

    def site_indices(self, flat: np.ndarray) -> np.ndarray:
        """Index into `sites` of every flat id, same shape."""
        return np.searchsorted(self.offsets, flat, side="right") - 1


@dataclass(frozen=True)
class BlockNames:
    """Module names of one architecture, relative to the body (`blocks`) and to a block (the rest)."""

    blocks: str
    linears: Mapping[str, str]
    """Kind to module, in the order in which their units are numbered."""
    optional: frozenset[str] = field(default_factory=frozenset)
    """Kinds that members of the family may lack."""
    fused: Literal["", "interleaved", "stacked"] = ""
    """Layout of `attn.qkv`: (head, 3, head_dim) or (3, D)."""


LLAMA = BlockNames(
    "layers",
    {
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.out": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.in": "mlp.up_proj",
        "mlp.out": "mlp.down_proj",
    },
    optional=frozenset({"mlp.gate"}),
)

ARCHITECTURES: Mapping[str, BlockNames] = {
    "xglm": BlockNames(
        "layers",
        {
            "attn.q": "self_attn.q_proj",
            "attn.k": "self_attn.k_proj",
            "attn.v": "self_attn.v_proj",
            "attn.out": "self_attn.out_proj",
            "mlp.in": "fc1",
            "mlp.out": "fc2",
        },
    ),
    "bloom": BlockNames(
        "h",
        {
            "attn.qkv": "self_attention.query_key_value",
            "attn.out": "self_attention.dense",
            "mlp.in": "mlp.dense_h_to_4h",
            "mlp.out": "mlp.dense_4h_to_h",
        },
        fused="interleaved",
    ),
    "gpt2": BlockNames(
        "h",
        {"attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"},
        fused="stacked",
    ),
    "gpt_neox": BlockNames(
        "layers",
        {
            "attn.qkv": "attention.query_key_value",
            "attn.out": "attention.dense",
            "mlp.in": "mlp.dense_h_to_4h",
            "mlp.out": "mlp.dense_4h_to_h",
        },
        fused="interleaved",
    ),
}
"""`config.model_type` to names. Anything else is accepted if its blocks carry Llama's names."""


def body(model: PreTrainedModel) -> nn.Module:
    """The model without its language-model head: the same object for a model that has none."""
    return model.base_model


def num_layers(model: PreTrainedModel) -> int:
    """Number of blocks."""
    return len(_blocks(model)[1])


def find_sites(model: PreTrainedModel, site_set: str | Sequence[str] = "linear") -> tuple[Site, ...]:
    """The sites of `model` in order of layer, then of the architecture's table.

    Args:
        site_set: a name of `SITE_SETS`, or a list of kinds.

    Raises:
        ValueError: unknown set, kind or architecture; or the architecture has none of the kinds.
    """
    names, blocks, prefix = _blocks(model)
    width = model.config.get_text_config().hidden_size
    named = isinstance(site_set, str) and site_set in SITE_SETS
    if isinstance(site_set, str):
        kinds = SITE_SETS.get(site_set, (site_set,))
    else:
        kinds = tuple(site_set)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(
            f"unknown site kind {unknown[0] if unknown else kinds!r}: choose one of the sets {', '.join(SITE_SETS)} "
            f"or a list of {', '.join(KINDS)}"
        )
    _refuse_gaps(model, names, blocks, kinds)
    sites: list[Site] = []
    if "embed" in kinds:
        sites.append(Site(-1, "embed", f"{prefix}0", width))
    for layer, block in enumerate(blocks):
        for kind, relative in names.linears.items():
            module = _submodule(block, relative)
            if module is None:
                continue
            inputs, outputs = _widths(module, f"{prefix}{layer}.{relative}")
            if kind == "mlp.out" and "mlp.act" in kinds:
                sites.append(Site(layer, "mlp.act", f"{prefix}{layer}.{relative}", inputs))
            if kind in kinds:
                sites.append(Site(layer, kind, f"{prefix}{layer}.{relative}", outputs))
        if "resid" in kinds:
            sites.append(Site(layer, "resid", f"{prefix}{layer}", width))
    missing = [kind for kind in kinds if kind not in {site.kind for site in sites}]
    if not sites or (missing and not named):
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing)}: this architecture has "
            f"{', '.join(dict.fromkeys([*names.linears, 'mlp.act', 'resid', 'embed']))}"
        )
    return tuple(sites)


def unit_kinds(model: PreTrainedModel, site: Site) -> np.ndarray:
    """Kind of every unit of `site`, (U,) str: a fused `attn.qkv` is told apart into `attn.q`, `attn.k`, `attn.v`."""
    names = _blocks(model)[0]
    if site.kind != "attn.qkv":
        return np.full(site.num_units, site.kind)
    parts = np.array(["attn.q", "attn.k", "attn.v"])
    if names.fused == "stacked":
        return np.repeat(parts, site.num_units // 3)
    heads = model.config.num_attention_heads
    return np.tile(np.repeat(parts, site.num_units // (3 * heads)), heads)


def _blocks(model: PreTrainedModel) -> tuple[BlockNames, nn.ModuleList, str]:
    """Name table, blocks, and the dotted path that stands before a block's index."""
    model_type = model.config.model_type
    inner = body(model)
    names = ARCHITECTURES.get(model_type, LLAMA)
    blocks = getattr(inner, names.blocks, None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise _unknown_architecture(model, f"its body has no list of blocks called {names.blocks!r}")
    path = "" if inner is model else f"{model.base_model_prefix}."
    return names, blocks, f"{path}{names.blocks}."


def _refuse_gaps(model: PreTrainedModel, names: BlockNames, blocks: nn.ModuleList, kinds: Sequence[str]) -> None:
    """Every block must have the linear modules that are asked for: no set of units may come from some blocks only."""
    asked = {*kinds, *(["mlp.out"] if "mlp.act" in kinds else [])}
    for kind, relative in names.linears.items():
        if kind not in asked:
            continue
        gaps = [layer for layer, block in enumerate(blocks) if _submodule(block, relative) is None]
        if not gaps or (len(gaps) == len(blocks) and kind in names.optional):
            continue
        if len(gaps) == len(blocks):
            raise _unknown_architecture(model, f"its blocks have no {relative!r}")
        raise ValueError(
            f"{type(model).__name__}: block {gaps[0]} has no {relative!r}, other blocks have (a mixture of experts, or "
            "two kinds of attention); its units do not compare over layers: choose the site set 'residual'"
        )


def _unknown_architecture(model: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(
        f"no site table for model_type {model.config.model_type!r} ({type(model).__name__}) and it is not like Llama: "
        f"{reason}; add an entry to ARCHITECTURES in analysis/extraction/sites.py, e.g. {model.config.model_type!r}: "
        f"BlockNames('layers', {{'mlp.in': 'mlp.up_proj', 'mlp.out': 'mlp.down_proj'}})"
    )


def _submodule(block: nn.Module, relative: str) -> nn.Module | None:
    try:
        return block.get_submodule(relative)
    except AttributeError:
        return None


def _widths(module: nn.Module, path: str) -> tuple[int, int]:
    """Input and output width of a linear module: `nn.Linear` and its quantised kin, or GPT-2's Conv1D (nx, nf)."""
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):
        if hasattr(module, inputs) and hasattr(module, outputs):
            return int(getattr(module, inputs)), int(getattr(module, outputs))
    raise ValueError(f"{path} is a {type(module).__name__}, not a linear module: its units are unknown")
