"""The layouts in which dictionaries lie on disk: a file for each, in the order in which they are looked for."""

__all__ = ["save_sae_lens"]

from vit_lens.dictionaries.layouts import dictionary_learning, own, prisma, sae_lens, saev, sdxl_unbox, sparsify  # noqa: F401, to be registered
from vit_lens.dictionaries.layouts.sae_lens import save_sae_lens
