"""A model that answers questions about pictures, as a judge: the probability of yes as its first word."""

__all__ = ["VqaJudge"]

import os
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import CheckpointError, StudyError
from vit_lens.files import as_path, read_json
from vit_lens.studies.annotate.judging import Verdict
from vit_lens.studies.annotate.sheet import Question

_SPELLINGS = ("{}", " {}", "{}.")
_WORDS = {"yes": ("yes", "Yes"), "no": ("no", "No")}
_BLIP2 = "blip-2"


class VqaJudge:
    """Answers yes where a model gives the first token of yes more probability than that of no.

    The score of a verdict is the probability of yes among the two, summed over spellings (``yes``, ``Yes``, with a
    space before). A model that would rather say something else is not noticed: hold its answers against people's.

    Args:
        model: An image-text-to-text model of transformers.
        processor: Its processor.
        name: The judge's name as an annotator.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        self._tokens = {answer: _first_tokens(processor.tokenizer, words) for answer, words in _WORDS.items()}
        if both := self._tokens["yes"] & self._tokens["no"]:
            self._tokens = {answer: tokens - both for answer, tokens in self._tokens.items()}
        if not all(self._tokens.values()):
            raise StudyError(
                f"{name}: yes and no begin with the same tokens, so that the first says nothing; take another"
            )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "VqaJudge":
        """Load a model and its processor from a folder; nothing is downloaded, and no code of the folder is run.

        Args:
            folder: What ``save_pretrained`` of model and processor wrote, weights as safetensors.
            device: Where it runs.

        Raises:
            StudyError: There is no such folder, or transformers has no such model.
            CheckpointError: A file of it is missing or damaged.
        """
        import transformers

        path = as_path(folder, StudyError)
        if not (path / "config.json").is_file():
            raise StudyError(f"{path} holds no config.json; give the folder of an image-text-to-text model")
        said = read_json(path / "config.json", StudyError, "save the model again")
        is_blip = said.get("model_type") == _BLIP2
        kind: Any = transformers.Blip2ForConditionalGeneration if is_blip else transformers.AutoModelForImageTextToText
        safe = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = transformers.AutoProcessor.from_pretrained(path, **safe)
            model = kind.from_pretrained(path, use_safetensors=True, **safe)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path}: transformers cannot load it as an image-text-to-text model with processor, tokenizer and "
                f"safetensors ({reason:.300})"
            ) from error
        if getattr(processor, "tokenizer", None) is None:
            raise CheckpointError(f"{path} has no processor with a tokenizer; save the whole processor there")
        return cls(model.to(device), processor, f"vqa:{path.resolve().name}")

    def check(self, questions: Sequence[Question]) -> None:
        """Take any question: the model reads its text."""

    @torch.no_grad()
    def answer(self, picture: PIL.Image.Image, questions: Sequence[Question]) -> list[Verdict]:
        verdicts = []
        for one in questions:
            chances = self._next(picture, one.text).softmax(dim=-1)
            yes, no = (float(chances[sorted(self._tokens[answer])].sum()) for answer in ("yes", "no"))
            verdicts.append(Verdict("yes" if yes > no else "no", yes / (yes + no) if yes + no > 0 else 0.5))
        return verdicts

    def _next(self, picture: PIL.Image.Image, text: str) -> Float[Tensor, " token"]:
        """Return the logits of the first token of the answer."""
        given = self.processor(images=picture.convert("RGB"), text=self._prompt(text), return_tensors="pt")
        inputs: Mapping[str, Any] = given.to(self.model.device)
        config = self.model.config
        text_config = config.get_text_config()
        if getattr(text_config, "is_encoder_decoder", False):
            start = torch.full((1, 1), text_config.decoder_start_token_id, device=self.model.device)
            inputs = {**inputs, "decoder_input_ids": start}
        return self.model(**inputs).logits[0, -1].double().cpu()

    def _prompt(self, text: str) -> str:
        if self.model.config.model_type == _BLIP2:
            return f"Question: {text} Answer:"
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": f"{text} Answer yes or no."}]
            turn = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return f"{getattr(self.processor, 'image_token', '<image>')}\nQuestion: {text} Answer yes or no. Answer:"


def _first_tokens(tokenizer: Any, words: Sequence[str]) -> set[int]:
    """Return the first tokens of the spellings of a word; none where the tokenizer has no token for it."""
    found = set()
    for spelling in _SPELLINGS:
        for word in words:
            ids = tokenizer(spelling.format(word), add_special_tokens=False)["input_ids"]
            if ids and ids[0] != tokenizer.unk_token_id:
                found.add(ids[0])
    return found
