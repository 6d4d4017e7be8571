"""Where units live: module outputs ("sites") and the flat space of their units.

Architecture differences stay in one table of names; nothing else in the repository asks what a model is called.

Shapes:  U units of one site   A all units of a `UnitSpace`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """The output of one module: the coordinates of its last dimension are the units."""

    layer: int
    """Block index from 0; -1 is the embedding output."""
    kind: str
    """`attn.q`, `attn.k`, `attn.v`, `attn.qkv`, `attn.out`, `mlp.in`, `mlp.gate`, `mlp.act`, `mlp.out`, `resid`, `embed`."""
    module: str
    """Dotted path of the module whose output is read."""
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
