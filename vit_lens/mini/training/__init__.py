"""Training of the embedded pair, of its judge and of further encoders, from any seed; nothing else needs it."""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "EncoderSettings": ".encoder", "JUDGE_SEED": ".replica", "JUDGE_SETTINGS": ".replica", "MoVQSettings": ".movq",
    "UNetSettings": ".unet", "evaluate_pair": ".evaluate", "load_pair": ".evaluate", "measure_pair": ".pair",
    "train_encoder": ".encoder", "train_pair": ".pair", "train_replica": ".replica",
})  # fmt: skip
