"""The page of a dictionary: its statistics beside its controls, and what its features fire on."""

__all__ = ["check_examples", "write_dictionary_page"]

import os
from pathlib import Path

from vit_lens.dictionaries import Dictionary, FeatureExamples
from vit_lens.errors import DictionaryError, expect
from vit_lens.identity import fingerprint
from vit_lens.report.dictionary_head import dictionary_head
from vit_lens.report.feature_parts import features_of, features_words
from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.thumbs import BUDGET, inline_pictures

_HERE = "vit_lens.report"


def write_dictionary_page(dictionary: Dictionary, examples: FeatureExamples, out: str | os.PathLike[str]) -> Path:
    """Write the page of a dictionary as one file, which needs no network, and return its path.

    Args:
        dictionary: The dictionary; with :func:`vit_lens.dictionaries.with_controls` its statistics stand beside those
            of its controls, and without them the page says so.
        examples: What its features fire on, by :func:`vit_lens.dictionaries.feature_examples`.
        out: The file to write, ending in .html.

    Raises:
        DictionaryError: The examples are of another dictionary.
        OutputError: The page cannot be written, or ``out`` is not an .html file.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> examples = vl.dictionaries.feature_examples(found, model, images, n=3)
    >>> vl.report.write_dictionary_page(found, examples, tmp / "dictionary.html").name
    'dictionary.html'
    """
    check_examples(dictionary, examples)
    target = page_path(out)
    uses = [one.input for bands in examples.bands for band in bands for one in band.examples]
    share = len(examples.pictures) / max(1, len(uses))  # a picture is in the page as often as it is shown
    pictures = inline_pictures(examples.pictures.__getitem__, sorted(examples.pictures), int(BUDGET * share))
    return write_page(
        target, (_HERE, "dictionary.html.j2"), styles=[(_HERE, "page.css"), (_HERE, "dictionary.css")],
        **dictionary_head(dictionary), features=features_of(dictionary, examples, pictures),
        features_words=features_words(examples), has_pictures=bool(examples.pictures), base="", seen={},
    )  # fmt: skip


def check_examples(dictionary: Dictionary, examples: FeatureExamples) -> None:
    """Refuse examples of another dictionary.

    Raises:
        DictionaryError: They are, or are none.
    """
    expect(dictionary, Dictionary, "dictionary", DictionaryError, "a vl.Dictionary")
    expect(examples, FeatureExamples, "examples", DictionaryError, "vit_lens.dictionaries.feature_examples(...)")
    if examples.content != fingerprint({"W_dec": dictionary.W_dec}):
        raise DictionaryError("the examples are of another dictionary; feature_examples(dictionary, ...) makes its own")
