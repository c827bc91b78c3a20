"""Captions with their syntax: from a file that holds parses, or parsed by a library whose model is already here."""

__all__ = ["PARSERS", "Parse", "Word", "of_conllu", "of_spacy", "of_stanza", "parse_captions", "read_captions"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vit_lens.errors import StudyError, nearest
from vit_lens.files import read_json

PARSERS = ("stanza", "spacy", "conllu")
_MOST_BYTES = 256 * 2**20  # COCO's captions_train2017.json has 92 MB
_SPACY_MODEL = "en_core_web_sm"
_GET = {
    "stanza": "python -c \"import stanza; stanza.download('en')\", where there is a network, or --parser stanza:FOLDER "
    "with the folder that it was downloaded to",
    "spacy": f"python -m spacy download {_SPACY_MODEL}, where there is a network, or --parser spacy:NAME_OR_FOLDER",
}


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a caption.

    Attributes:
        form: The word as it stands there.
        lemma: Its lemma; the form where the parser gives none.
        pos: Its universal part of speech, such as ``NOUN``.
        head: The place of the word that governs it; -1 for the root.
        relation: How that governs it, such as ``nmod``.
    """

    form: str
    lemma: str
    pos: str
    head: int
    relation: str


@dataclass(frozen=True, kw_only=True)
class Parse:
    """A caption that is one sentence, and its words."""

    text: str
    words: tuple[Word, ...]


def read_captions(path: Path) -> list[str]:
    """Return the different captions of a file, in its order: a line each (.txt), or as COCO has them (.json).

    Raises:
        StudyError: The file cannot be read, holds none, or is of another kind.
    """
    if path.suffix == ".json":
        advice = "give COCO's captions_*.json, or a .txt with a caption a line"
        rows = read_json(path, StudyError, advice, most=_MOST_BYTES).get("annotations")
        told = [one.get("caption") if isinstance(one, dict) else None for one in rows] if isinstance(rows, list) else []
        if not told or not all(isinstance(one, str) for one in told):
            raise StudyError(f"{path} holds no annotations with a caption each; {advice}")
        lines = [str(one) for one in told]
    elif path.suffix == ".txt":
        lines = _text(path).splitlines()
    else:
        raise StudyError(
            f"--captions {path}: expected .txt (a caption a line), .json (COCO's), or .conllu with its parser"
        )
    found = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not found:
        raise StudyError(f"{path} holds no caption")
    return found


def parse_captions(path: Path, parser: str, *, n: int, seed: int) -> list[Parse]:
    """Return captions with their syntax; those that are no single sentence are left out, and nothing is downloaded.

    Args:
        path: The captions, see :func:`read_captions`; or with the parser ``conllu`` a file of parses.
        parser: ``conllu``, or ``stanza`` or ``spacy``, behind which may stand a colon and the model: a folder of
            stanza's resources, the name or folder of a spaCy pipeline.
        n: How many are parsed at most, drawn at random; a file of parses is taken in whole.
        seed: Of that draw.

    Raises:
        StudyError: There is no such parser, its library or its model is missing, or the file cannot be read.
    """
    name, _, model = parser.partition(":")
    if name == "conllu" and model:
        raise StudyError(f"--parser {parser}: conllu reads parses and has no model; give --parser conllu")
    if name not in PARSERS:
        raise StudyError(f"--parser {parser}: nearest: {nearest(name, PARSERS)}")
    if (path.suffix == ".conllu") != (name == "conllu"):
        raise StudyError(f"--captions {path} with --parser {name}: a .conllu file and the parser conllu go together")
    if name == "conllu":
        return _distinct(of_conllu(_text(path), str(path)))
    captions = read_captions(path)
    chosen = np.random.default_rng(seed).permutation(len(captions))[:n]
    texts = [captions[place] for place in sorted(chosen)]
    return _distinct((_with_stanza if name == "stanza" else _with_spacy)(texts, model))


def of_conllu(text: str, where: str = "the text") -> list[Parse]:
    """Return the sentences of a text in CoNLL-U; words within tokens count, empty nodes do not.

    Raises:
        StudyError: It is no CoNLL-U, a word lacks its head, or the library is not installed.
    """
    conllu = _library("conllu")
    try:
        sentences = conllu.parse(text)
    except conllu.exceptions.ParseException as error:
        raise StudyError(f"{where} cannot be read as CoNLL-U ({error})") from error
    found = []
    for sentence in sentences:
        words = [one for one in sentence if isinstance(one["id"], int)]
        told = sentence.metadata.get("text") or _joined(sentence)
        rows = [(one["form"], one.get("lemma"), one.get("upos"), one.get("head"), one.get("deprel")) for one in words]
        found.append(_parse(told, rows, where))
    return found


def of_spacy(document: Any) -> Parse | None:
    """Return the parse of a document of spaCy; None where it is no single sentence."""
    if len(list(document.sents)) != 1:
        return None
    words = [one for one in document if not one.is_space]
    place = {one.i: k for k, one in enumerate(words)}
    rows = [
        (one.text, one.lemma_, one.pos_, 0 if one.head.i == one.i else place.get(one.head.i, -1) + 1, one.dep_)
        for one in words
    ]
    return _parse(document.text, rows, "spaCy")


def of_stanza(document: Any) -> Parse | None:
    """Return the parse of a document of stanza; None where it is no single sentence."""
    if len(document.sentences) != 1:
        return None
    (sentence,) = document.sentences
    rows = [(one.text, one.lemma, one.upos, one.head, one.deprel) for one in sentence.words]
    return _parse(document.text or " ".join(row[0] for row in rows), rows, "stanza")


def _parse(text: str, rows: Sequence[tuple[Any, ...]], where: str) -> Parse:
    """Make a parse of rows of form, lemma, part of speech, head (from 1, 0 for the root) and relation."""
    text, words = " ".join(text.split()), []
    for form, lemma, pos, head, relation in rows:
        if not isinstance(head, int) or not 0 <= head <= len(rows) or {pos, relation} & {None, "", "_"}:
            raise StudyError(f"{where}: {form!r:.40} in {text!r:.80} has no part of speech, head or relation in it")
        told = lemma if lemma and lemma != "_" else form
        words.append(Word(form=form, lemma=told, pos=pos, head=head - 1, relation=relation))
    return Parse(text=text, words=tuple(words))


def _joined(sentence: Any) -> str:
    """Return the text of a sentence from its tokens, where no comment gives it."""
    text, inside = "", 0
    for one in sentence:
        if isinstance(one["id"], tuple) and "-" in one["id"]:
            inside = one["id"][2]
        elif not isinstance(one["id"], int) or one["id"] <= inside:
            continue
        text += one["form"] + ("" if (one.get("misc") or {}).get("SpaceAfter") == "No" else " ")
    return text


def _distinct(parses: Sequence[Parse]) -> list[Parse]:
    return list({one.text: one for one in reversed(parses)}.values())[::-1]


def _with_stanza(texts: Sequence[str], model: str) -> list[Parse]:
    stanza = _library("stanza")
    try:
        parser = stanza.Pipeline(
            "en", processors="tokenize,pos,lemma,depparse", download_method=None, verbose=False,
            **({"dir": model} if model else {}),
        )  # fmt: skip
    except Exception as error:  # stanza raises what it likes where a model is missing
        raise _no_model("stanza", error) from error
    return [one for one in map(of_stanza, parser.bulk_process(list(texts))) if one is not None]


def _with_spacy(texts: Sequence[str], model: str) -> list[Parse]:
    spacy = _library("spacy")
    try:
        parser = spacy.load(model or _SPACY_MODEL)
    except (OSError, ValueError) as error:
        raise _no_model("spacy", error) from error
    if "parser" not in parser.pipe_names:
        raise StudyError(f"the spaCy pipeline {model or _SPACY_MODEL} has no parser, only {parser.pipe_names}")
    return [one for one in map(of_spacy, _piped(parser, texts)) if one is not None]


def _piped(parser: Any, texts: Sequence[str]) -> Iterator[Any]:
    yield from parser.pipe(texts)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise StudyError(f"{name} is not installed: pip install 'vit-lens[parse]', or pip install {name}") from error


def _no_model(parser: str, error: Exception) -> StudyError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return StudyError(f"{parser} has no model here, and none is downloaded ({reason:.200}); get one by {_GET[parser]}")


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise StudyError(f"{path}: no such file, or it is larger than {_MOST_BYTES // 2**20} MiB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read as text in UTF-8 ({error})") from error
