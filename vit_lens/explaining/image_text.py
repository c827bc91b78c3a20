"""Image-text-to-text models of transformers from a folder: asked a question, or for words."""

__all__ = ["ImageTextModel"]

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import CheckpointError, ExplanationError, VitLensError
from vit_lens.files import as_path, read_json

_SPELLINGS = ("{}", " {}", "{}.")
_WORDS = {"yes": ("yes", "Yes"), "no": ("no", "No")}
_BLIP2 = "blip-2"


class ImageTextModel:
    """Says how likely a model's answer to a question begins with yes, and writes words.

    Args:
        model: An image-text-to-text model of transformers.
        processor: Its processor.
        name: What messages call it.
        error: The error to raise where yes and no cannot be told apart.

    Raises:
        CheckpointError: The tokenizer knows no yes or no, as one without its files.
        VitLensError: ``error``: both begin with the same tokens.
    """

    def __init__(self, model: Any, processor: Any, name: str, *, error: type[VitLensError] = ExplanationError):
        self.model, self.processor, self.name = model.eval(), processor, name
        self._tokens = {answer: _first_tokens(processor.tokenizer, words) for answer, words in _WORDS.items()}
        if missing := [answer for answer, tokens in self._tokens.items() if not tokens]:
            raise CheckpointError(
                f"{name}: the tokenizer has no token for {missing[0]!r}; are all its files in the folder?"
            )
        if both := self._tokens["yes"] & self._tokens["no"]:
            self._tokens = {answer: tokens - both for answer, tokens in self._tokens.items()}
        if not all(self._tokens.values()):
            raise error(f"{name}: yes and no begin with the same tokens, so that the first says nothing; take another")

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu", kind: str = "vlm",
        error: type[VitLensError] = ExplanationError,
    ) -> "ImageTextModel":  # fmt: skip
        """Load a model and its processor from a folder; nothing is downloaded, and no code of the folder is run.

        Args:
            folder: What ``save_pretrained`` of model and processor wrote, weights as safetensors.
            device: Where it runs.
            kind: What stands before the folder's name in the model's.
            error: The error to raise where there is no such folder.

        Raises:
            VitLensError: ``error``: there is no such folder.
            CheckpointError: A file of it is missing or damaged, or transformers has no such model.
        """
        import transformers

        path = as_path(folder, error)
        if not (path / "config.json").is_file():
            raise error(f"{path} holds no config.json; give the folder of an image-text-to-text model")
        said = read_json(path / "config.json", error, "save the model again")
        is_blip = said.get("model_type") == _BLIP2
        made: Any = transformers.Blip2ForConditionalGeneration if is_blip else transformers.AutoModelForImageTextToText
        safe = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = transformers.AutoProcessor.from_pretrained(path, **safe)
            model, told = made.from_pretrained(path, use_safetensors=True, output_loading_info=True, **safe)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as damage:
            reason = (str(damage).strip().splitlines() or [type(damage).__name__])[0]
            raise CheckpointError(
                f"{path}: transformers cannot load it as an image-text-to-text model with processor, tokenizer and "
                f"safetensors ({reason:.300})"
            ) from damage
        if lacking := [*told["missing_keys"], *told["mismatched_keys"]]:  # transformers would fill them at random
            raise CheckpointError(
                f"{path}: the weights lack {len(lacking)} tensors, such as {lacking[0]}; save it again"
            )
        if getattr(processor, "tokenizer", None) is None:
            raise CheckpointError(f"{path} has no processor with a tokenizer; save the whole processor there")
        return cls(model.to(device), processor, f"{kind}:{path.resolve().name}", error=error)

    @torch.no_grad()
    def chances(self, picture: Image.Image, question: str) -> tuple[float, float]:
        """Return the chances that the first word of the answer to a question is yes, and that it is no."""
        found = self._next(picture, question).softmax(dim=-1)
        yes, no = (float(found[sorted(self._tokens[answer])].sum()) for answer in ("yes", "no"))
        return yes, no

    @torch.no_grad()
    def write(self, picture: Image.Image, asked: str, *, n_tokens: int = 60) -> str:
        """Return what the model writes when it is asked for words, the likeliest word at every place.

        Raises:
            ExplanationError: The model cannot take so many words.
        """
        inputs = self._inputs(picture, asked)
        try:
            out = self.model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)[0]
        except (IndexError, RuntimeError, ValueError) as error:  # what models raise where their context ends
            raise ExplanationError(
                f"{self.name} cannot write {n_tokens} tokens behind {inputs['input_ids'].shape[1]} "
                f"({(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}); take another model"
            ) from error
        prompt = inputs["input_ids"][0]
        repeats = len(out) >= len(prompt) and bool((out[: len(prompt)] == prompt).all())
        return self.processor.tokenizer.decode(out[len(prompt) :] if repeats else out, skip_special_tokens=True)

    def _next(self, picture: Image.Image, text: str) -> Float[Tensor, " token"]:
        """Return the logits of the first token of the answer."""
        inputs = self._inputs(picture, text, " Answer yes or no.")
        text_config = self.model.config.get_text_config()
        if getattr(text_config, "is_encoder_decoder", False):
            start = text_config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.full((1, 1), start, device=self.model.device)
        return self.model(**inputs).logits[0, -1].cpu().double()

    def _inputs(self, picture: Image.Image, text: str, how: str = "") -> dict[str, Tensor]:
        where = {"device": self.model.device}
        return {
            name: value.to(**where, dtype=self.model.dtype) if value.is_floating_point() else value.to(**where)
            for name, value in self._read(picture.convert("RGB"), text, how).items()
        }

    def _read(self, picture: Image.Image, text: str, how: str) -> Mapping[str, Tensor]:
        """Return what the model is given: BLIP-2 its own form of a question, others a chat, or what comes nearest."""
        if self.model.config.model_type == _BLIP2:
            return self.processor(images=picture, text=f"Question: {text} Answer:", return_tensors="pt")
        asked = text + how
        if not getattr(self.processor, "chat_template", None):
            image = getattr(self.processor, "image_token", "<image>")
            return self.processor(images=picture, text=f"{image}\nQuestion: {asked} Answer:", return_tensors="pt")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": asked}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip


def _first_tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
    """Return the first tokens of the spellings of a word; none where the tokenizer has no token for it."""
    found = set()
    for spelling in _SPELLINGS:
        for word in words:
            ids = tokenizer(spelling.format(word), add_special_tokens=False)["input_ids"]
            if ids and ids[0] != tokenizer.unk_token_id:
                found.add(ids[0])
    return found
