"""What could not be read of the paper, and what stands in its place here."""

__all__ = ["ANY_FIGURE", "EQUATIONS", "NO_INTERVAL", "TOP_LIST", "unknown_settings"]

from vit_lens.decoders import settings_dict
from vit_lens.studies.paper.paper_setup import PaperSetup
from vit_lens.studies.paper.site_readings import N_DRAWS

EQUATIONS = "Equations of the lens"
ANY_FIGURE = (
    "A reconstruction: the paper's text, equations, settings and code could not be read. This is a figure in its "
    "manner, with controls that are ours.",
    "Below every picture stand its controls: a random direction of equal norm in the site's place, and what the site "
    "writes for another image (a reference image, drawn by seed) at the same norm, drawn with the same noise. Their "
    f"numbers before decoding are means over {N_DRAWS} draws, their pictures are the first of them. A picture that a "
    "control also makes says nothing about the site, or nothing about the image.",
)
NO_INTERVAL = "One image: nothing here has an interval."
TOP_LIST = (
    "One image, and the best of many sites: the list has no interval, and the best of many look better than they are."
)


def unknown_settings(setup: PaperSetup, **here: str) -> tuple[tuple[str, str], ...]:
    """Return what is unknown of the paper's settings, and what stands here; ``here`` adds to it, by what is unknown."""
    decoder, settings = setup.pictures.decoder, setup.pictures.settings
    said = settings_dict(settings)
    guidance, own = float(said.get("guidance") or 1), "the decoder's own"
    common = {
        EQUATIONS: "D1 (reconstruction): LN(r_L + (alpha - 1) h) proj, later layers held fixed",
        "Denoising steps and scheduler": f"{decoder.settings_words(settings)}, {said.get('scheduler', 'no scheduler')}",
        "Guidance": "no guidance" if guidance <= 1 else f"guidance {guidance:g}, zero-image negative",
        "Resolution": f"{said.get('height', own)} x {said.get('width', own)}",
        "Noise": f"seed {said.get('seed', 'none')}; one start and one noise sequence for all pictures of the figure",
        "Images": f"the one shown; {len(setup.pixels)} reference images for means, none of them shown",
    }
    return tuple((common | here).items())
