"""The axis names used in every signature of the package.

========== ==========================================================================================
axis       meaning
========== ==========================================================================================
batch      images
pos        tokens of one image: the class token (CLS) at position 0, then the registers, where the tower
           has them; then the patches in row-major order (left to right, then top to bottom)
query      positions that attend, where they are not all positions: one in attention pooling
patch      image patches, without CLS and registers
row        the positions that the model's read-out uses: CLS alone, the patches, their mean (one row),
           or all tokens; see :meth:`vit_lens.HookedViT.readout_rows`
site       places in the model whose contribution is looked at, see :class:`vit_lens.Site`
component  terms that an embedding or a residual stream is split into
direction  directions of the embedding, such as captions
token      tokens that a head reads from, where ``pos`` is where it writes
grid_row   rows of patches, from the top; ``grid_column`` from the left
layer      transformer blocks
head       attention heads of one layer
d_model    the residual stream
d_head     one head's queries, keys and values
d_mlp      hidden units of one MLP
d_pooled   the vector that the projection reads: d_model, or the width of attention pooling
d_embed    the image embedding (what CLIP compares with text, and what a decoder is conditioned on)
role       where a token of a prompt stands: at the start, as the k-th, at the end, behind it
answer     answers of a probe
numbers    everything that a decoder is given of a row, as one vector
channel    red, green, blue
height     pixel rows; ``width`` pixel columns; sizes are always given as (height, width)
========== ==========================================================================================

``scale`` axes of size 1 are written ``1``.
"""
