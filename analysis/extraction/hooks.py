"""Reading and forcing activations: the only forward hooks in the repository.

A hook lives inside a `with` and dies in its `finally`. A site that was never heard is an error, never silence: a hook
registered after `torch.compile`, or a module that its model bypasses (BLOOM with `pretraining_tp > 1`), does not fire.
Forcing follows ml-selfcond (Suau et al., ICML 2022): a unit's output is overwritten by a constant.

Shapes:  B texts of a batch   T tokens   U units of one site   M forced units
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from analysis.extraction.sites import INPUT_KINDS, Site

Forcing = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""`(units, values)` or `(units, values, rows)`, see `force_units`."""


@contextmanager
def read_sites(model: nn.Module, sites: Sequence[Site], on_output: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Call `on_output(site, activations)` with (B, T, U) whenever a forward pass inside the context reaches a site.

    The tensor is the model's own: read it, do not write to it.

    Raises:
        ValueError: a site names no module of `model`, its width differs, or no forward pass reached it.
    """

    def change(site: Site, activations: Tensor) -> None:
        on_output(site, activations)

    with _hooked(model, sites, change):
        yield


@contextmanager
def force_units(
    model: nn.Module,
    forcing: Mapping[Site, Forcing],
    *,
    positions: Literal["all", "new"] = "all",
    prompt_length: int | None = None,
) -> Iterator[None]:
    """Overwrite units by constants in every forward pass inside the context.

    Args:
        forcing: for each site `units` (M,) int64 with `values` (M,) for all texts of the batch or (B, M) for each;
            or a triple with `rows` (M,) int64: then `values[m]` goes to unit `units[m]` of text `rows[m]` alone, so
            that one batch can hold several concepts.
        positions: `all` positions, or only those after the prompt (`new`).
        prompt_length: number of prompt positions, padding included; needed for `new`.

    An empty mapping, or sites with no units, leaves the model's outputs bit-identical.

    Raises:
        ValueError: a unit that the site does not have, shapes that do not fit, a site that was never reached.
    """
    if positions not in ("all", "new"):
        raise ValueError(f"positions={positions!r}: choose 'all' or 'new'")
    if positions == "new" and (prompt_length is None or prompt_length < 0):
        raise ValueError("positions='new' needs prompt_length, the number of prompt positions with padding")
    wanted = {site: entry for site, entry in forcing.items() if entry[0].numel()}
    for site, entry in wanted.items():
        _check_forcing(site, entry)
    # Asked for here, once: asking a GPU for it in every call of a hook would make the model wait.
    last_text = {site: int(entry[2].max()) for site, entry in wanted.items() if len(entry) == 3}
    skip = int(prompt_length or 0) if positions == "new" else 0
    placed: dict[Site, Forcing] = {}
    past = 0

    def before_body(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal past
        past = _past_length(module, args, kwargs)

    def change(site: Site, activations: Tensor) -> Tensor | None:
        first = max(0, skip - past)
        if first >= activations.shape[1]:
            return None
        if last_text.get(site, -1) >= activations.shape[0]:
            raise ValueError(
                f"{site.module}: forcing names text {last_text[site]} of a batch of {activations.shape[0]}"
            )
        if site not in placed or placed[site][1].device != activations.device:
            units, values, *rest = wanted[site]
            device = activations.device
            moved = (units.to(device), values.to(device, activations.dtype), *(rows.to(device) for rows in rest))
            placed[site] = moved  # type: ignore[assignment]
        return _overwrite(site, activations, placed[site], first)

    inner = getattr(model, "base_model", model)
    handle = inner.register_forward_pre_hook(before_body, with_kwargs=True) if skip else None
    try:
        with _hooked(model, list(wanted), change):
            yield
    finally:
        if handle is not None:
            handle.remove()


def _overwrite(site: Site, activations: Tensor, forcing: Forcing, first: int) -> Tensor:
    # The module's fresh output may be changed in place unless autograd still needs it.
    forced = activations.clone() if torch.is_grad_enabled() and activations.requires_grad else activations
    units, values, *rest = forcing
    if rest:
        forced[rest[0], first:, units] = values[:, None]
    elif values.dim() == 2:
        if values.shape[0] != forced.shape[0]:
            raise ValueError(f"{site.module}: forcing values for {values.shape[0]} texts, batch of {forced.shape[0]}")
        forced[:, first:, units] = values[:, None, :]
    else:
        forced[:, first:, units] = values
    return forced


def _check_forcing(site: Site, entry: Forcing) -> None:
    units, values, *rest = entry
    if units.dim() != 1 or int(units.min()) < 0 or int(units.max()) >= site.num_units:
        raise ValueError(f"{site.module}: forced units must be a vector of ids below {site.num_units}")
    if values.shape[-1] != len(units) or values.dim() > (1 if rest else 2):
        raise ValueError(f"{site.module}: {len(units)} forced units but values of shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{site.module}: a forcing value is not finite")
    if rest and rest[0].shape != units.shape:
        raise ValueError(f"{site.module}: {len(units)} forced units but rows of shape {tuple(rest[0].shape)}")


def _past_length(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Positions already in the key-value cache that a call of the body is given."""
    cache = kwargs.get("past_key_values")
    if cache is None and args:
        bound = inspect.signature(module.forward).bind_partial(*args)
        cache = bound.arguments.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


@contextmanager
def _hooked(model: nn.Module, sites: Sequence[Site], change: Callable[[Site, Tensor], Tensor | None]) -> Iterator[None]:
    """Hook every site; what `change` returns, if anything, replaces the activations."""
    heard: set[Site] = set()

    def on_input(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            heard.add(site)
            name = None if args else _first_argument(module)
            changed = change(site, args[0] if name is None else kwargs[name])
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

        return hook

    def on_output(site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            heard.add(site)
            # A BLOOM block returns a tuple, an XGLM block of transformers 5 a tensor.
            first = output[0] if isinstance(output, tuple) else output
            changed = change(site, first)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles: list[RemovableHandle] = []
    try:
        for site in sites:
            try:
                module = model.get_submodule(site.module)
            except AttributeError:
                raise ValueError(f"{type(model).__name__} has no module {site.module!r}") from None
            if site.kind in INPUT_KINDS:
                handles.append(module.register_forward_pre_hook(on_input(site), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(on_output(site)))
        yield
        unheard = [site for site in sites if site not in heard]
        if unheard:
            raise ValueError(
                f"{len(unheard)} of {len(sites)} sites were never reached by a forward pass, the first is "
                f"{unheard[0].module!r}: analyse the uncompiled, unwrapped model (and for BLOOM pretraining_tp=1)"
            )
    finally:
        for handle in handles:
            handle.remove()


def _first_argument(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))
