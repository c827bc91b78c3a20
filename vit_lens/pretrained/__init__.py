"""Read a tower from memory, a file, open_clip's registry or the Hugging Face Hub, with the sizes it really has."""

__all__ = ["SupportedTower", "TowerSource", "read_module", "read_pretrained", "supported_open_clip", "supported_towers"]

from vit_lens.pretrained.modules import read_module
from vit_lens.pretrained.names import read_pretrained
from vit_lens.pretrained.source import TowerSource
from vit_lens.pretrained.supported import SupportedTower, supported_open_clip, supported_towers
