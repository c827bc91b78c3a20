"""Where a path ends: the inputs of later heads and MLPs, or the end of the residual stream."""

__all__ = ["Input", "Receiver", "place_written", "resolve_receiver", "spelled_receiver"]

from dataclasses import dataclass, replace

from vit_lens.addresses import Address, Site, find_address, spelled, split_addresses
from vit_lens.config import TowerConfig
from vit_lens.errors import InterventionError

Receiver = Site | Address | str


@dataclass(frozen=True)
class Input:
    """One thing that a receiver reads.

    Attributes:
        hook_name: The full name of the hook point: a ``hook_q_input``, a ``hook_mlp_in``, ..., or the last
            ``hook_resid_post``.
        place: Where on the residual stream it reads: 2 l before block l, 2 l + 1 between its attention and MLP.
        head: The index of the head whose attention input it is, counted from 0; None for all of it.
    """

    hook_name: str
    place: int
    head: int | None


def resolve_receiver(receiver: Receiver, cfg: TowerConfig) -> list[Input]:
    """Return the inputs of a receiver.

    ============================ =============================================================================
    ``final``                    the last residual stream, so the embedding itself: the direct effect
    ``L2H1.q`` (``.k``, ``.v``)  what queries (keys, values) of one head read
    ``L2H1``                     all three of them
    ``L2.attn``, ``L2.attn.q``   the same for all heads of a layer
    ``L2.mlp``                   what an MLP reads
    ``L2H1.q + L3H0.q``          several at once
    ============================ =============================================================================

    Raises:
        UnknownSiteError: A layer or head is not one of the model's.
        InterventionError: The receiver is none of these.

    >>> found = vl.interventions.resolve_receiver("L2H1.q + L3.mlp", model.cfg)
    >>> [(held.hook_name, held.head) for held in found]
    [('blocks.2.hook_q_input', 1), ('blocks.3.hook_mlp_in', None)]
    """
    parts = [part.strip() for part in split_addresses(receiver, "+")] if isinstance(receiver, str) else [receiver]
    found = [held for part in parts for held in _inputs(part, cfg)]
    if len(found) > 1 and any(held.place == 2 * cfg.n_layers for held in found):
        raise InterventionError(f"receiver {receiver!r}: 'final' lies behind all others and stands alone")
    return list(dict.fromkeys(found))


def spelled_receiver(receiver: Receiver) -> str:
    """Return a receiver as addresses are written, ``L2H1.q + L3H0.q``."""
    return " + ".join(spelled(part) for part in split_addresses(str(receiver), "+"))


def place_written(site: Site | Address) -> int:
    """Return the first place on the residual stream (see :class:`Input`) at which a sender shows.

    Raises:
        InterventionError: Nothing on the residual stream can follow it.
    """
    if site.layer is None:
        raise InterventionError(f"sender {site}: attention pooling writes behind the residual stream")
    shift = {"resid_pre": 0, "head": 1, "attn": 1, "resid_mid": 1, "mlp": 2, "resid_post": 2}
    return 2 * site.layer + shift[site.kind]


def _inputs(part: Receiver, cfg: TowerConfig) -> list[Input]:
    address, forks = find_address(str(part)), "qkv"
    if address is not None and address.position is not None:
        raise InterventionError(
            f"receiver {address}: a receiver reads every token; the sender says at which it writes, as 'L0H1@cls'"
        )
    if address is not None and address == address.part and address.hook is not None:
        if address.hook == "final":
            return [Input(f"blocks.{cfg.n_layers - 1}.hook_resid_post", 2 * cfg.n_layers, None)]
        hook, _, fork = address.hook.rpartition(".")
        if fork in forks:
            part, forks = str(replace(address, hook=hook or None)), fork
    (site,) = Site.resolve(Site.parse(part) if isinstance(part, str) else part, cfg)
    if site.layer is None or site.is_residual:
        raise InterventionError(
            f"receiver {site}: expected 'final', a head's input 'L2H1.q', 'L2H1', 'L2.attn', or 'L2.mlp'; what "
            "attention pooling and the read-out see is 'final'"
        )
    if site.kind == "mlp":
        return [Input(f"blocks.{site.layer}.hook_mlp_in", 2 * site.layer + 1, None)]
    return [Input(f"blocks.{site.layer}.hook_{fork}_input", 2 * site.layer, site.head) for fork in forks]
