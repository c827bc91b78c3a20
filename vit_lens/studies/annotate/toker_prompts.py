"""The prompts that Toker et al. 2024 released, by family, with a question for each column that people answered."""

__all__ = ["FAMILIES", "Family", "read_families"]

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_lens.errors import StudyError, nearest
from vit_lens.files import as_path
from vit_lens.studies.annotate.sheet import Question
from vit_lens.studies.annotate.tables import read_table

_ALTERNATIVES = 3
_SEED = 20


@dataclass(frozen=True, kw_only=True)
class _Asks:
    """A question in words of a family's columns: what is read, what is there if yes, what might be there instead.

    Without ``instead`` the caption is filled from other prompts: in the columns ``vary``, or in all.
    """

    text: str
    caption: str
    instead: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A family as it was released: its file, its columns, which lines of the file, whose annotations it has."""

    file: str
    columns: tuple[str, ...]
    table: str
    asks: Mapping[str, _Asks]
    only: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Prompts of one kind.

    Attributes:
        name: Its name here.
        table: What the released annotations call it.
        prompts: The prompts.
        questions: The questions about each prompt, by the names of the released columns.
    """

    name: str
    table: str
    prompts: tuple[str, ...]
    questions: Mapping[str, tuple[Question, ...]]

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the questions."""
        return tuple(one.question for one in self.questions[self.prompts[0]])


def _there(column: str) -> _Asks:
    return _Asks(text=f"Is there a {{{column}}}?", caption=f"a {{{column}}}")


def _shown(*instead: str) -> _Asks:
    return _Asks(text="Does the picture show: {said}?", caption="{said}", instead=instead)


_NO_ANIMAL = ("a person", "a landscape", "a building")
_ANIMALS = {
    "IsAnimal": _Asks(text="Is there an animal?", caption="an animal", instead=_NO_ANIMAL),
    "IsClass": _there("class"), "IsCorrectAnimal": _there("animal"),
}  # fmt: skip
_RELATIONS = {
    "FirstThingExists": _there("class1"), "SecondThingExists": _there("class2"),
    "RelationCorrect": _Asks(
        text="Is the {class1} {relation} the {class2}?", caption="a {class1} {relation} a {class2}",
        instead=("a {class2} {relation} a {class1}", "a {class1} next to a {class2}"),
    ),
}  # fmt: skip
_SYNTAX = {
    "IsFirstClass": _Asks(text="Does the picture show {noun_0}?", caption="{noun_0}"),
    "IsSecondClass": _Asks(text="Does the picture show {noun_1}?", caption="{noun_1}"), "IsCorrect": _shown(),
}  # fmt: skip
_COLOURS = {
    f"Is{name}{what}": ask
    for name, own, other in (("First", 1, 2), ("Second", 2, 1))
    for what, ask in {
        "ColorPresent": _Asks(text=f"Is there anything {{color{own}}}?", caption=f"something {{color{own}}}"),
        "ColorCorrect": _Asks(
            text=f"Is the {{class{own}}} {{color{own}}}?", caption=f"a {{color{own}}} {{class{own}}}",
            instead=(f"a {{color{other}}} {{class{own}}}",),
        ),
        "ObjectPresent": _there(f"class{own}"),
    }.items()
}  # fmt: skip
_IN_COCO, _IN_RELATIONS = "syntactic_ralations_coco", "relations"  # the first is spelled so
_NOUNS, _THINGS = ("noun_0", "noun_1", "head", "dependent"), ("class1", "class2", "is_natural")
_BEINGS = ("animal", "class", "avg_daily_views")
_SOURCES = {
    "simple_objects": _Source(file="simple_objects", columns=("class",), table="classes",
                              asks={"IsCorrect": _there("class")}),
    "single_color": _Source(
        file="single_color", columns=("class", "color", "is_natural"), table="positional_single_color",
        asks={"IsCorrect": _Asks(text="Is there a {color} {class}?", caption="a {color} {class}", vary=("color",))},
    ),
    "two_colors": _Source(
        file="two_colors", columns=("class1", "color1", "class2", "color2"), table="positional_two_colors",
        asks={"IsCorrect": _shown("a {color2} {class1} and a {color1} {class2}"), **_COLOURS},
    ),
    "relations_in": _Source(file=_IN_RELATIONS, columns=_THINGS, table="positional_in", asks=_RELATIONS,
                            only={"relation": "in"}),
    "relations_on": _Source(file=_IN_RELATIONS, columns=_THINGS, table="positional_on", asks=_RELATIONS,
                            only={"relation": "on"}),
    "syntax_dependent_first": _Source(file=_IN_COCO, columns=_NOUNS, table="syntax_head", asks=_SYNTAX,
                                      only={"named first": "dependent"}),
    "syntax_head_first": _Source(file=_IN_COCO, columns=_NOUNS, table="syntax_head_first", asks=_SYNTAX,
                                 only={"named first": "head"}),
    "familiar_animals": _Source(file="Prompts_familiar_animals", columns=_BEINGS, table="positional_common_animals",
                                asks=_ANIMALS),
    "unfamiliar_animals": _Source(file="unfamiliar_animals", columns=_BEINGS, table="positional_uncommon_animals",
                                  asks=_ANIMALS),
    "famous": _Source(
        file="famous", columns=(), table="famous",
        asks={
            "IsHuman": _Asks(text="Is there a person?", caption="a person",
                             instead=("an animal", "a landscape", "a building")),
            "IsCorrect": _Asks(text="Is this {said}?", caption="{said}"),
        },
    ),
}  # fmt: skip
FAMILIES = tuple(_SOURCES)
"""The families of prompts. Of famous people the questions for gender and style are not among them: the released files
do not say what is right."""


def read_families(checkout: str | os.PathLike[str], names: Sequence[str] = FAMILIES) -> list[Family]:
    """Read families of prompts from a checkout, with their questions.

    Args:
        checkout: A checkout of github.com/tokeron/DiffusionLens.
        names: Which, of :data:`FAMILIES`.

    Raises:
        StudyError: There is no such family, or a file of the checkout is not as released.
    """
    if unknown := [name for name in names if name not in _SOURCES]:
        raise StudyError(f"no family of prompts {unknown[0]!r}; nearest: {nearest(unknown[0], FAMILIES)}")
    folder = as_path(checkout, StudyError, "checkout") / "prompts"
    if not folder.is_dir():
        raise StudyError(f"{folder} is no folder; give a checkout of github.com/tokeron/DiffusionLens")
    return [_family(name, _SOURCES[name], folder) for name in dict.fromkeys(names)]


def _family(name: str, source: _Source, folder: os.PathLike[str]) -> Family:
    path = as_path(folder, StudyError) / f"{source.file} - Sheet1.csv"
    _, lines = read_table(path, needed=["prompt", *source.columns])
    rows = [_row({key: cell.strip() for key, cell in line.cells.items()}, line.where) for line in lines]
    for key, value in (source.only or {}).items():
        rows = [row for row in rows if row.get(key) == value]
    if not rows:
        raise StudyError(f"{path} holds no prompt of the family {name}")
    generator = np.random.default_rng(_SEED)
    questions = {row["prompt"]: tuple(_questions(row, rows, source.asks, generator)) for row in rows}
    return Family(name=name, table=source.table, prompts=tuple(questions), questions=questions)


def _row(cells: dict[str, str], where: str) -> dict[str, str]:
    """Add what templates and families need: the prompt without its full stop, the relation, which noun is first."""
    found = cells | {"said": cells["prompt"].removesuffix(".")}
    if not all(value for key, value in cells.items() if key != "avg_daily_views"):
        raise StudyError(f"{where}: a cell is empty; give a checkout of github.com/tokeron/DiffusionLens")
    if "class2" in cells and "is_natural" in cells:
        between = re.search(rf"{re.escape(cells['class1'])} (in|on) .*{re.escape(cells['class2'])}", cells["prompt"])
        if between is None:
            raise StudyError(f"{where}: no in or on between {cells['class1']!r} and {cells['class2']!r} of the prompt")
        found["relation"] = between[1]
    if "head" in cells:
        if cells["head"] not in (cells["noun_0"], cells["noun_1"]):
            raise StudyError(f"{where}: the head {cells['head']!r:.40} is neither noun")
        found["named first"] = "head" if cells["head"] == cells["noun_0"] else "dependent"
    return found


def _questions(
    row: Mapping[str, str], rows: Sequence[Mapping[str, str]], asks: Mapping[str, _Asks], generator: np.random.Generator
) -> list[Question]:
    true = {_filled(one.caption, row) for one in asks.values()}
    found = []
    for name, one in asks.items():
        if one.instead:
            others = [_filled(words, row) for words in one.instead]
        else:
            strange = [{**row, **{key: other[key] for key in one.vary or other}} for other in rows]
            every = sorted({_filled(one.caption, other) for other in strange} - true)
            others = [every[place] for place in generator.permutation(len(every))[:_ALTERNATIVES]]
        found.append(
            Question(
                prompt=row["prompt"], question=name, text=_filled(one.text, row), caption=_filled(one.caption, row),
                alternatives=tuple(other for other in others if other not in true),
            )
        )  # fmt: skip
    return found


def _filled(template: str, row: Mapping[str, str]) -> str:
    return re.sub(r"\ba (?=[aeioAEIO]|[uU](?!ni))", "an ", template.format_map(row))
