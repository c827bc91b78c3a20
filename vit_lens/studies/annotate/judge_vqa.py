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
    space before); a token that both may begin with counts for neither. A model that would rather say something else is
    not noticed: hold its answers against people's.

    Args:
        model: An image-text-to-text model of transformers.
        processor: Its processor.
        name: The judge's name as an annotator.

    Raises:
        CheckpointError: The tokenizer knows no yes or no, as one without its files.
        StudyError: Both begin with the same tokens.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        self._tokens = {answer: _first_tokens(processor.tokenizer, words) for answer, words in _WORDS.items()}
        if missing := [answer for answer, tokens in self._tokens.items() if not tokens]:
            raise CheckpointError(
                f"{name}: the tokenizer has no token for {missing[0]!r}; are all its files in the folder?"
            )
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
            model, told = kind.from_pretrained(path, use_safetensors=True, output_loading_info=True, **safe)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path}: transformers cannot load it as an image-text-to-text model with processor, tokenizer and "
                f"safetensors ({reason:.300})"
            ) from error
        if lacking := [*told["missing_keys"], *told["mismatched_keys"]]:  # transformers would fill them at random
            raise CheckpointError(
                f"{path}: the weights lack {len(lacking)} tensors, such as {lacking[0]}; save it again"
            )
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
        where = {"device": self.model.device}
        inputs = {
            name: value.to(**where, dtype=self.model.dtype) if value.is_floating_point() else value.to(**where)
            for name, value in self._read(picture.convert("RGB"), text).items()
        }
        text_config = self.model.config.get_text_config()
        if getattr(text_config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.full((1, 1), text_config.decoder_start_token_id, **where)
        return self.model(**inputs).logits[0, -1].cpu().double()

    def _read(self, picture: PIL.Image.Image, text: str) -> Mapping[str, Tensor]:
        """Return what the model is given: BLIP-2 its own form of a question, others a chat, or what comes nearest."""
        if self.model.config.model_type == _BLIP2:
            return self.processor(images=picture, text=f"Question: {text} Answer:", return_tensors="pt")
        asked = f"{text} Answer yes or no."
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
