"""How each pipeline encodes prompts: what its ``encode_prompt`` is called with and returns, and how much it reads."""

__all__ = ["check_words", "encode", "room"]

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.text_formats import Reading, TextFormat
from vit_lens.texts import check_known

# What encode_prompt must be given although it is nothing.
_NOTHING = {"flux": ["prompt_2"], "sdxl": ["prompt_2"], "sd3": ["prompt_2", "prompt_3"]}
_LOWERED = ("if", "pixart", "sana")  # their pipelines read small letters alone
_LENGTHS = {"bert": 77, "t5": 256}  # of HunyuanDiT
_QWEN_LENGTH = 1024

Pair = tuple[Condition, Condition | None]


def encode(format: TextFormat, pipe: Any, prompts: Sequence[str], *, guided: bool, length: int | None) -> Pair:
    """Return the conditions of prompts, and with ``guided`` of what guidance leads away from, as the pipeline has them.

    Args:
        format: The format of the pipeline.
        pipe: The stock pipeline.
        prompts: The prompts.
        guided: Whether the second is asked for.
        length: The number of positions that are read, where that is a choice.
    """
    given = {"prompt": list(prompts), "device": pipe.device, "num_images_per_prompt": 1}
    given |= dict.fromkeys(_NOTHING.get(format.name, []))
    given |= {} if length is None else {"max_sequence_length": length}
    if format.name == "hunyuandit":
        return _two_sequences(pipe, given, guided)
    if format.name in ("flux", "flux2", "flux2klein", "qwenimage"):
        away = given | {"prompt": [""] * len(prompts)}
        return _alone(format, pipe, given), _alone(format, pipe, away) if guided else None
    if format.name == "sana":
        given["complex_human_instruction"] = _instruction(pipe)
    found = pipe.encode_prompt(**given, do_classifier_free_guidance=guided)
    if format.masked:
        parts = [{"tokens": found[0], "mask": found[1]}, {"tokens": found[2], "mask": found[3]}]
    elif "pooled" in format.takes:
        parts = [{"tokens": found[0], "pooled": found[2]}, {"tokens": found[1], "pooled": found[3]}]
    else:
        parts = [{"tokens": found[0]}, {"tokens": found[1]}]
    return _condition(parts[0]), _condition(parts[1]) if guided else None


def _alone(format: TextFormat, pipe: Any, given: Mapping[str, Any]) -> Condition:
    """Return what pipelines return that encode what guidance leads away from in a call of its own."""
    tokens, second, *_ = pipe.encode_prompt(**given)
    if format.masked:  # Qwen-Image has no mask where all of it is True
        return _condition({"tokens": tokens, "mask": tokens.new_ones(tokens.shape[:2]) if second is None else second})
    return Condition(tokens=tokens, pooled=second if "pooled" in format.takes else None)


def _two_sequences(pipe: Any, given: Mapping[str, Any], guided: bool) -> Pair:
    """Return the sequences of BERT and of T5, one behind the other, the narrower filled up with zeros."""
    import torch
    from torch.nn.functional import pad

    found = [
        pipe.encode_prompt(
            **given, do_classifier_free_guidance=guided, max_sequence_length=length, text_encoder_index=index
        )
        for index, length in enumerate(_LENGTHS.values())
    ]
    width = max(one[0].shape[-1] for one in found)

    def joined(tokens: int, mask: int) -> Condition:
        parts = [pad(one[tokens], (0, width - one[tokens].shape[-1])) for one in found]
        return _condition({"tokens": torch.cat(parts, 1), "mask": torch.cat([one[mask] for one in found], 1)})

    return joined(0, 2), joined(1, 3) if guided else None


def _condition(parts: Mapping[str, Tensor]) -> Condition:
    return Condition(**{name: part.bool() if name == "mask" else part for name, part in parts.items()})


def _instruction(pipe: Any) -> list[str]:
    return list(inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default)


def check_words(format: TextFormat, pipe: Any, prompts: Sequence[str]) -> None:
    """Refuse a prompt with a word that a tokenizer does not know; most know every byte.

    Raises:
        TextError: There is one; the message names it.
    """
    texts = [one.lower() if format.name in _LOWERED else one for one in prompts]
    for one in format.readings:
        part = pipe.components[one.encoder.replace("text_encoder", "tokenizer")]
        tokenizer = getattr(part, "tokenizer", part)  # FLUX.2 has a processor
        check_known(tokenizer, texts, tokenizer(texts, verbose=False)["input_ids"], "prompt")


def room(format: TextFormat, pipe: Any, one: Reading, prompt: str, length: int | None) -> tuple[int, int]:
    """Return how many tokens an encoder gets of a prompt, the template's included, and how many it reads.

    Args:
        format: The format of the pipeline.
        pipe: The stock pipeline.
        one: What the format reads of the encoder.
        prompt: The prompt.
        length: The number of positions that are read, where that is a choice.
    """
    tokenizer = pipe.components[one.encoder.replace("text_encoder", "tokenizer")]
    text = prompt.lower().strip() if format.name in _LOWERED else prompt
    most = _LENGTHS[one.kind] if format.name == "hunyuandit" else length or format.length or 0
    if format.name == "flux2":
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        talk = format_input(prompts=[text], system_message=pipe.system_message)
        return len(tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"][0]), most
    if format.name == "flux2klein":
        talk = [{"role": "user", "content": text}]
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        text = tokenizer.apply_chat_template(talk, **how)
    elif format.name == "qwenimage":
        text, most = pipe.prompt_template_encode.format(text), _QWEN_LENGTH + one.dropped
    elif format.name == "lumina2":
        text = f"{pipe.system_prompt} <Prompt Start> {text}"
    elif format.name == "sana":
        instruction = "\n".join(_instruction(pipe))
        text, most = instruction + text, len(tokenizer.encode(instruction)) + most - 2
    elif one.kind == "clip" or not most:
        most = tokenizer.model_max_length
    return len(tokenizer(text, verbose=False)["input_ids"]), most
