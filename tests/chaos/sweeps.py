"""The small sweeps that are killed and damaged, and what a record gives: one definition for all of it."""

import hashlib
import json
import tempfile
from functools import cached_property
from pathlib import Path

import tiny_kandinsky
import tiny_sweep
import torch

_SITES = ["L0.resid_pre", "L0H1", "L1.mlp"]


class World:
    """A tower, what draws, three images, and what stands beside them; made once, in the parent of all children."""

    def __init__(self, folder: Path):
        import vit_lens.sweeping.ledger as ledger
        from vit_lens import HookedViT, TextBank
        from vit_lens.readers import Gallery

        torch.set_num_threads(1)  # a forked child has no other
        for name in ("_CHECKPOINT_SECONDS", "_SHOW_SECONDS", "_SHARE"):  # a checkpoint after every batch
            assert hasattr(ledger, name)
            setattr(ledger, name, 0)
        self.folder = folder
        (folder / "images").mkdir()
        self.images = tiny_sweep.pictures(folder / "images")
        self.model, self.quick = tiny_sweep.tower(), tiny_sweep.quick_decoder()
        self.lenses = tiny_sweep.lenses(self.model, self.images[1:])
        self.mini = HookedViT.from_pretrained("mini")
        said = dict(captions=("a cup", "a dog", "a ship"), logit_scale=7.0, logit_bias=None)
        texts = TextBank(**said, embeds=tiny_kandinsky.embeddings(3)[0], encoder_id=self.model.encoder_id)
        self.beside = {"texts": texts, "gallery": Gallery.from_folder(self.model, folder / "images"), "live": True}

    @cached_property
    def hf_tower(self):
        """A tower like the model, in the classes of transformers."""
        from conftest import randomize
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = dict(hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20)
        config = CLIPVisionConfig(**sizes, patch_size=10, projection_dim=tiny_kandinsky.D_EMBED, hidden_act="gelu")
        return randomize(CLIPVisionModelWithProjection(config).eval())

    def sweep(self, out, *, model=None, decoder=None, images=None, lens=None, sites=_SITES, drawn=True, **options):
        """Sweep two images, with a random direction beside each site; what is given stands in for the world's own."""
        from vit_lens import sweep

        said = dict(lens=lens or self.lenses, sites=sites, controls=True, batch_size=4, draws=2) | options
        with_decoder = (decoder or self.quick) if drawn else None
        chosen = self.images[:2] if images is None else images
        return sweep(model or self.model, with_decoder, chosen, out=out, **tiny_sweep.options(**said))


def digest(value) -> str:
    """Return digits of bytes, of a tensor, or of what JSON can hold."""
    if isinstance(value, torch.Tensor):
        value = f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(value).hexdigest()[:12]


def gives(path, *, shown=True) -> dict[str, str]:
    """Return what a record gives, as `Record.load`, the figures and the page read it: digits by name.

    These are its table, embeddings, pictures, inputs, readouts, live numbers and neighbours, and with ``shown`` its
    page and figures. A part that is refused has ``refused`` and the words in place of digits.
    """
    from vit_lens import figures
    from vit_lens.records import Record
    from vit_lens.report import write_report
    from vit_lens.report.data import page_data

    record = Record.load(path)
    found = {"complete": digest(True) if record.complete else "refused: it is unfinished"}

    def give(name, read):
        found[name] = _item(read)

    give("table", lambda: record.frame().to_csv(index=False).encode())
    give("embeddings", lambda: [[name, _plain(held.parts())] for name, held in sorted(record.conditions.items())])
    give("readouts", lambda: _plain(vars(record.readouts)) if record.readouts else None)
    give("live", lambda: _plain(vars(record.live)) if record.live else None)
    for row in range(len(record.table)) if record.manifest["decoder"] else ():
        give(f"picture {row}", lambda row=row: _pixels(record.picture(row)))
    for entry in record.manifest["inputs"]:
        give(f"input {entry['index']}", lambda entry=entry: _pixels(record.input(entry["index"])))
    give(
        "neighbours",
        lambda: [_plain(_pixels(record.neighbour(i))) for i in record.readouts.names] if record.readouts else [],
    )
    if shown:
        give("page", lambda: _without_thumbs(page_data(record, "")))
        for name in ("head_map", "residual_strip"):
            give(name, lambda name=name: getattr(figures, name)(record).to_json())
        with tempfile.TemporaryDirectory() as elsewhere:  # its words follow from the manifest
            give(
                "written", lambda: bool(write_report(record, Path(elsewhere) / "report.html") and record._repr_html_())
            )
    return found


def _item(read):
    from vit_lens.errors import VitLensError

    try:
        return digest(read())
    except VitLensError as error:
        return f"refused: {error}"


def _pixels(picture):
    return f"{picture.mode}{picture.size}".encode() + picture.tobytes()


def _plain(value):
    if isinstance(value, (torch.Tensor, bytes)):
        return digest(value)
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return _plain(vars(value)) if hasattr(value, "cosine") else value


def _without_thumbs(data):
    if isinstance(data, dict):
        return {name: _without_thumbs(value) for name, value in data.items() if name not in ("thumb", "thumbs")}
    return [_without_thumbs(value) for value in data] if isinstance(data, list) else data
