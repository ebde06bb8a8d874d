"""What the entries of a batch need: derived from what is asked for and what the store has."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from logitstore.stream.batch_fields import PADDING, SLOTTED, values_name

if TYPE_CHECKING:
    from logitstore.reader import Store
    from logitstore.stream.collate import Collate

__all__ = ["Wanted"]


class Wanted(NamedTuple):
    """How a batch's fields come from a store's.

    Attributes
    ----------
    fields
        Fields that are delivered, in the order of `PADDING`.
    needed
        Those and the ones that they are sorted, picked or derived by.
    values_name
        What the batch calls its values.
    derives, sorts, picks
        Whether values are derived by ``lse``, entries are sorted by logit, and used slots are picked.
    """

    fields: tuple[str, ...]
    needed: tuple[str, ...]
    values_name: str
    derives: bool
    sorts: bool
    picks: bool

    @classmethod
    def of(cls, store: Store, collate: Collate) -> Wanted:
        """Return what a collate wants of a store.

        Raises
        ------
        InvalidArgumentError
            The store does not have a field that is asked for.
        """
        manifest = store.manifest
        absent = {"counts": not manifest.has_counts, "lse_T": not manifest.temperatures}
        available = [name for name in PADDING if not absent.get(name)]
        fields = collate.delivered(available)
        name = values_name(collate.values, manifest.values)
        derives = "values" in fields and name != f"{manifest.values}s"
        slotted = not set(SLOTTED).isdisjoint(fields)
        sorts, picks = slotted and collate.order == "logit", slotted and collate.entries == "flat"
        needed = {*fields, *(["lse"] if derives else []), *(["ids"] if picks else []), *(SLOTTED if sorts else [])}
        return cls(fields, tuple(name for name in available if name in needed), name, derives, sorts, picks)
