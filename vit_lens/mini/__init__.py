"""The embedded pair: a small CLIP with a small Kandinsky-format decoder, trained on a procedural world."""
