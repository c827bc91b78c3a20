"""Pages of a dictionary's features as one static folder: an index that is searched and sorted, and a page of each."""

__all__ = ["FeatureStrip", "best_first", "write_feature_pages"]

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from vit_lens.dictionaries import Dictionary, FeatureExamples
from vit_lens.errors import DictionaryError, expect
from vit_lens.estimates import Estimate
from vit_lens.explaining import Explained, Explanations
from vit_lens.files import as_path, make_directory, write_atomic
from vit_lens.records import encode_png
from vit_lens.report.dictionary_head import dictionary_head
from vit_lens.report.dictionary_page import check_examples
from vit_lens.report.feature_parts import Feature, Shown, features_of, features_words, in_digits
from vit_lens.report.one_file import write_page

_HERE = "vit_lens.report"
_FROM_FILES = "data: 'self' file:"  # heat maps are in the page, pictures beside it
_STYLES = [(_HERE, "page.css"), (_HERE, "dictionary.css"), (_HERE, "features.css")]
_ORDERS = {"auc": "AUC", "score": "score", "localisation": "localisation"}  # most to be trusted first
_NULLS = ("untrained", "random directions")  # what nothing was learnt for
_IN_CARD = 3


class FeatureStrip(NamedTuple):
    """What a model makes of an input while a feature is steered: pictures by row, a column for each strength.

    >>> FeatureStrip("a red star", ("0", "0.4"), {"feature 3": [], "random direction": []}).columns
    ('0', '0.4')
    """

    of: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[PIL.Image.Image]]


class _Told(NamedTuple):
    """What was said of a feature, and how far it held, in words and digits."""

    text: str
    numbers: list[tuple[str, str, str]]  # name, value, meaning
    seen: dict[int, str]  # inputs that were shown or judged, and which


class _Card(NamedTuple):
    """A feature on the index: itself, what was said of it, its strongest examples, and what it is sorted by."""

    feature: Feature
    told: _Told | None
    why: str
    examples: list[Shown]
    keys: dict[str, str]
    has_strip: bool


def write_feature_pages(
    dictionary: Dictionary, examples: FeatureExamples, out: str | os.PathLike[str], *,
    explanations: Explanations | None = None, strips: Mapping[int, FeatureStrip] | None = None,
) -> Path:  # fmt: skip
    """Write pages of features into a folder, which needs no network and may be copied, and return its ``index.html``.

    The index has a card of every feature of the examples: the explanation, numbers, and the strongest inputs. It is
    searched by words, and sorted; first comes the order of what is most to be trusted of the numbers, AUC where there
    is one. The page of a feature has all its examples over the quantiles, with heat maps, which of them explained it
    and which tested it, the explanation beside its controls, the strip, and the nearest rows.

    Args:
        dictionary: The dictionary.
        examples: What its features fire on, by :func:`vit_lens.dictionaries.feature_examples`.
        out: The folder.
        explanations: What was said of its features, on the same inputs; its first kind is the dictionary.
        strips: By feature.

    Raises:
        DictionaryError: The examples are of another dictionary, or the explanations of other inputs; a strip is of a
            feature that is not among the examples, or lacks a picture.
        OutputError: The folder cannot be written.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> examples = vl.dictionaries.feature_examples(found, model, images, n=3)
    >>> index = vl.report.write_feature_pages(found, examples, tmp / "pages")
    >>> index.name, len(list((index.parent / "features").iterdir()))
    ('index.html', 3)
    """
    check_examples(dictionary, examples)
    folder, drawn = as_path(out, DictionaryError, "out"), dict(strips or {})
    rows = _rows(examples, explanations)
    _check_strips(examples, drawn)
    names = {index: f"shown/{index}.png" for index in examples.pictures}
    for place in ("shown", "features"):
        make_directory(folder / place)
    for index, picture in examples.pictures.items():
        write_atomic(folder / names[index], encode_png(picture))
    of_strips = {number: _strip(folder, number, strip) for number, strip in drawn.items()}
    told, why = {row.unit: _told(row) for row in rows}, _skipped(explanations)
    cards = [
        _card(one, told.get(one.number), why, rows, one.number in drawn)
        for one in features_of(dictionary, examples, names)
    ]
    orders = {key: name for key, name in _ORDERS.items() if any(getattr(row, key) is not None for row in rows)}
    orders["frequency"] = "frequency"
    order = {unit: place for place, unit in enumerate(best_first(rows))}
    cards.sort(key=lambda card: (order.get(card.feature.number, len(order)), -card.feature.frequency))
    head = dictionary_head(dictionary)
    for place, card in enumerate(cards):
        write_page(
            folder / "features" / f"{card.feature.number}.html", (_HERE, "feature.html.j2"), styles=_STYLES,
            images=_FROM_FILES, model=head["model"], one=card.feature, told=card.told, why=card.why,
            strip=of_strips.get(card.feature.number), has_pictures=bool(examples.pictures), base="../",
            seen=card.told.seen if card.told else {},
            before=cards[place - 1].feature.number if place else None,
            after=cards[place + 1].feature.number if place + 1 < len(cards) else None,
            features_words=features_words(examples),
        )  # fmt: skip
    return write_page(
        folder / "index.html", (_HERE, "features.html.j2"), styles=_STYLES, scripts=[(_HERE, "features.js")],
        images=_FROM_FILES, **head, cards=cards, orders=list(orders.items()), beside=_beside(explanations),
        has_pictures=bool(examples.pictures), features_words=features_words(examples), has_strips=bool(drawn),
    )  # fmt: skip


def best_first(rows: Sequence[Explained]) -> list[int]:
    """Return explained features, those first of whose explanation the most trusted number is highest.

    Args:
        rows: What was said of them.

    >>> found = vl.explaining.Explanations.load(explained)
    >>> len(best_first(found.rows)) == len(found.rows)
    True
    """

    def key(row: Explained) -> list[float]:
        return [-math.inf if (value := getattr(row, one)) is None else value for one in _ORDERS]

    return [row.unit for row in sorted(rows, key=key, reverse=True)]


def _rows(examples: FeatureExamples, explanations: Explanations | None) -> list[Explained]:
    """Return what was said of the dictionary's features.

    Raises:
        DictionaryError: It is of other inputs, or of none of the features.
    """
    if explanations is None:
        return []
    expect(explanations, Explanations, "explanations", DictionaryError, "vit_lens.explaining.explain(...)")
    if explanations.n_images != examples.n_inputs:
        raise DictionaryError(
            f"the explanations are of {explanations.n_images} images and the examples of {examples.n_inputs} inputs; "
            "give both the same ones"
        )
    return [row for row in explanations.rows if row.kind == explanations.kinds[0]]


def _check_strips(examples: FeatureExamples, strips: Mapping[int, FeatureStrip]) -> None:
    for number, strip in strips.items():
        if number not in examples.features:
            raise DictionaryError(f"a strip of f{number}, which is not among the examples; leave it out")
        if wrong := [name for name, row in strip.rows.items() if len(row) != len(strip.columns)]:
            raise DictionaryError(
                f"the strip of f{number} has {len(strip.columns)} columns, and {len(strip.rows[wrong[0]])} pictures in "
                f"its row {wrong[0]!r}; give one a column"
            )


def _strip(folder: Path, number: int, strip: FeatureStrip) -> tuple[FeatureStrip, dict[str, list[str]]]:
    """Write the pictures of a strip; return it with their names by row."""
    make_directory(folder / "strips")
    names: dict[str, list[str]] = {}
    for row, (name, pictures) in enumerate(strip.rows.items()):
        names[name] = [f"strips/{number}_{row}_{column}.png" for column in range(len(pictures))]
        for place, picture in zip(names[name], pictures, strict=True):
            write_atomic(folder / place, encode_png(picture))
    return strip, names


# ---- what was said -------------------------------------------------------------------------------------------------


def _told(row: Explained) -> _Told:
    numbers = [
        ("score", in_digits(row.score), f"on {len(row.positives)} where it fires, {len(row.negatives)} others"),
        ("shuffled", in_digits(row.shuffled), "with another feature's explanation"),
        ("constant", in_digits(row.constant), "of a judge that always says a half"),
        ("AUC", in_digits(row.auc), "of its activation, where the explanation holds against where not"),
        ("localisation", in_digits(row.localisation), "of its map, where the judge sees it in the image"),
    ]  # fmt: skip
    tested = {*row.positives, *row.negatives}
    seen = dict.fromkeys(tested, "tested it") | {
        image: "explained and tested it" if image in tested else "explained it" for image in row.explained_on
    }
    return _Told(row.text, [one for one in numbers if one[1]], seen)


def _skipped(explanations: Explanations | None) -> dict[int, str]:
    if explanations is None:
        return {}
    return {one.unit: one.why for one in explanations.skipped if one.kind == explanations.kinds[0]}


def _card(
    feature: Feature, told: _Told | None, why: Mapping[int, str], rows: Sequence[Explained], has_strip: bool
) -> _Card:
    row = next((one for one in rows if one.unit == feature.number), None)
    keys = {key: "" if (value := getattr(row, key, None)) is None else f"{value:.6f}" for key in _ORDERS}
    strongest = feature.bands[0].examples[:_IN_CARD] if feature.bands else []
    return _Card(
        feature, told, why.get(feature.number, ""), strongest, keys | {"frequency": f"{feature.frequency:.8f}"},
        has_strip,
    )  # fmt: skip


class _Beside(NamedTuple):
    """Explanations of all kinds: column names, rows, and what the numbers tell here, in words."""

    columns: list[str]
    rows: list[tuple[str, int, list[str]]]
    words: list[tuple[bool, str]]
    said: str


def _beside(explanations: Explanations | None) -> _Beside | None:
    """Return the dictionary's numbers, and how far they are above those of kinds that were not learnt."""
    if explanations is None:
        return None
    own, *others = explanations.kinds
    counts = explanations.counts()
    known = [key for key in _ORDERS if explanations.estimate(own, key).value is not None]
    rows = [(own, counts[own]["explained"], [_unsigned(explanations.estimate(own, key)) for key in known])]
    rows += [
        (f"less {other}", counts[other]["explained"], [_signed(explanations.minus(own, other, key)) for key in known])
        for other in others if counts[other]["explained"]
    ]  # fmt: skip
    shuffled = explanations.estimate(own, "shuffled")
    said = f"{explanations.protocol} protocol, explained by {explanations.explainer}, judged by {explanations.judge}"
    said += "" if shuffled.value is None else f"; with another feature's explanation {_unsigned(shuffled)}"
    nulls = [other for other in others if other in _NULLS and counts[other]["explained"]]
    words = []
    for key in known if nulls else []:
        words.append(_verdict(_ORDERS[key], {other: explanations.minus(own, other, key).low for other in nulls}))
    return _Beside([_ORDERS[key] for key in known], rows, words, said)


def _verdict(name: str, lows: Mapping[str, float | None]) -> tuple[bool, str]:
    """Return whether a number is above that of all kinds that nothing was learnt for, and say it."""
    if unknown := [other for other, low in lows.items() if low is None]:
        return False, f"{name}: too few units to tell it from that of {' and of '.join(unknown)}."
    if below := [other for other, low in lows.items() if low is not None and low <= 0]:
        return (
            False,
            f"{name} is not above that of {' and of '.join(below)}: it does not show that a feature was learnt.",
        )
    if missing := [other for other in _NULLS if other not in lows]:
        return False, f"{name} is above that of {' and of '.join(lows)}; it was not held against {missing[0]}."
    return True, f"{name} is above that of {' and of '.join(lows)}."


def _signed(estimate: Estimate) -> str:
    return str(estimate).replace("-", "\u2212")


def _unsigned(estimate: Estimate) -> str:
    return _signed(estimate).replace("+", "")
