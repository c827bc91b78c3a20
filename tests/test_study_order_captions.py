"""Order in captions of one's own: parses, the choice of captions and their balance by brute force, the estimator."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import tiny_pipelines

from vit_lens.errors import StudyError
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import half_rise
from vit_lens.studies.order.captions import Nouns, captions_order_study
from vit_lens.studies.order.noun_pairs import (
    DEPENDENT_FIRST,
    HEAD_FIRST,
    NounPair,
    ask_of_captions,
    balanced,
    noun_pair,
)
from vit_lens.studies.order.parses import Parse, Word, of_spacy, of_stanza, parse_captions, read_captions
from vit_lens.studies.order.study import AT_ONE_DISTANCE, HEAD, LINEAR, OTHER, SYNTACTIC
from vit_lens.studies.text_setup import TextSetup

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CHAIN = "a/DET/2/det man/NOUN/0/root that/PRON/4/nsubj sits/VERB/2/acl:relcl on/ADP/7/case a/DET/7/det chair/NOUN/4/obl"
COPULA = "many/ADJ/2/amod flowers/NOUN/6/nsubj are/AUX/6/cop on/ADP/6/case a/DET/6/det table/NOUN/0/root !/PUNCT/6/p"
COMPOUND = "a/DET/3/det dog/NOUN/3/compound house/NOUN/0/root"
BESIDE = "a/DET/2/det cat/NOUN/0/root and/CCONJ/5/cc a/DET/5/det dog/NOUN/2/conj"
VERB = "a/DET/2/det man/NOUN/3/nsubj rides/VERB/0/root a/DET/5/det horse/NOUN/3/obj"


def rows(said):
    return [(*one.split("/")[:2], int(one.split("/")[2]), one.split("/")[3]) for one in said.split()]


def lemma(form):
    return form[:-1] if form.endswith("s") and not form.endswith("ss") and len(form) > 4 else form


def parse(said):
    words = [Word(form=f, lemma=lemma(f), pos=p, head=h - 1, relation=r) for f, p, h, r in rows(said)]
    return Parse(text=" ".join(word.form for word in words), words=tuple(words))


def conllu(*sentences, text=True):
    told = []
    for said in sentences:
        told += [f"# text = {' '.join(one[0] for one in rows(said))}"] if text else []
        told += [f"{k}\t{f}\t{lemma(f)}\t{p}\t_\t_\t{h}\t{r}\t_\t_" for k, (f, p, h, r) in enumerate(rows(said), 1)]
        told.append("")
    return "\n".join(told) + "\n"


def pair(kind=HEAD_FIRST, first=4, second=1, number=0):
    return NounPair(
        text=f"{kind} {first} {second} {number}", head=f"h{number}", dependent=f"d{number}", kind=kind, relation="nmod",
        first=first, second=second,
    )  # fmt: skip


# ---- captions and their syntax


def test_parses_that_are_there_already(tmp_path):
    path = tmp_path / "c.conllu"
    path.write_text(conllu(CHAIN, COPULA, COPULA))
    found = parse_captions(path, "conllu", n=1, seed=0)
    assert found == [parse(CHAIN), parse(COPULA)]  # in whole, what is there twice once
    ranged = (
        "1-2\tdog's\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No\n1\tdog\tdog\tNOUN\t_\t_\t3\tnmod:poss\t_\t_\n"
        "2\t's\t's\tPART\t_\t_\t1\tcase\t_\t_\n3\ttail\t_\tNOUN\t_\t_\t0\troot\t_\t_\n3.1\tit\t_\t_\t_\t_\t_\t_\t_\t_\n"
    )
    path.write_text(ranged.replace("SpaceAfter=No", "_"))
    (one,) = parse_captions(path, "conllu", n=1, seed=0)
    assert one.text == "dog's tail" and [word.form for word in one.words] == ["dog", "'s", "tail"]
    assert [word.head for word in one.words] == [2, 0, -1] and one.words[2].lemma == "tail"
    path.write_text(ranged)
    assert parse_captions(path, "conllu", n=1, seed=0)[0].text == "dog'stail"
    for text, said in (
        ("x\ta\n", "cannot be read as CoNLL-U"),
        ("1\ta\n", "has no part of speech, head or relation"),
        ("1\ta\ta\tDET\t_\t_\t_\tdet\t_\t_\n", "'a' in 'a' has no part of speech, head or relation"),
        ("1\ta\ta\tDET\t_\t_\t2\tdet\t_\t_\n", "has no part of speech, head"),
        ("1\ta\ta\t_\t_\t_\t0\tdet\t_\t_\n", "has no part of speech, head"),
    ):
        path.write_text(text)
        with pytest.raises(StudyError, match=said):
            parse_captions(path, "conllu", n=1, seed=0)


def test_captions_a_line_and_as_coco_has_them(tmp_path):
    lines, coco = tmp_path / "c.txt", tmp_path / "captions_val.json"
    lines.write_text("a dog\n\n  a   cat \na dog\n")
    coco.write_text(json.dumps({"info": {}, "annotations": [{"id": 1, "caption": "a dog\n"}, {"caption": "a cat"}]}))
    assert read_captions(lines) == read_captions(coco) == ["a dog", "a cat"]
    coco.write_text(coco.read_text() + " " * (65 * 2**20))  # those of 2017's training images are longer than 64 MiB
    assert read_captions(coco) == ["a dog", "a cat"]
    for name, text, said in (
        ("x.json", "{}", "holds no annotations with a caption each"),
        ("x.json", '{"annotations": [{"id": 1}]}', "holds no annotations with a caption each"),
        ("x.txt", "\n \n", "holds no caption"),
        ("x.csv", "a", "expected .txt"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(StudyError, match=said):
            read_captions(tmp_path / name)
    with pytest.raises(StudyError, match="no such file"):
        read_captions(tmp_path / "none.txt")


def test_parsers_and_files_that_do_not_go_together(tmp_path, monkeypatch):
    (tmp_path / "c.txt").write_text("a dog")
    for parser, said in (("stanca", "nearest: 'stanza'"), ("conllu", "go together"), ("conllu:x", "has no model")):
        with pytest.raises(StudyError, match=said):
            parse_captions(tmp_path / "c.txt", parser, n=9, seed=0)
    with pytest.raises(StudyError, match="go together"):
        parse_captions(tmp_path / "c.conllu", "spacy", n=9, seed=0)
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(StudyError, match=r"spacy is not installed: pip install 'vit-lens\[parse\]'"):
        parse_captions(tmp_path / "c.txt", "spacy", n=9, seed=0)


def spacy_parse(spacy, said, **more):
    vocab, told = spacy.blank("en").vocab, rows(said)
    heads = [k if h == 0 else h - 1 for k, (_, _, h, _) in enumerate(told)]
    return spacy.tokens.Doc(
        vocab, words=[one[0] for one in told], pos=[one[1] for one in told], heads=heads,
        deps=[one[3] for one in told], lemmas=[lemma(one[0]) for one in told], **more,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_documents_of_spacy(tmp_path, monkeypatch):
    """A document made by hand, as there is no model here; and a pipeline that is no parser, or is not there."""
    spacy = pytest.importorskip("spacy", reason="spacy is not installed")
    found = of_spacy(spacy_parse(spacy, CHAIN))
    assert found.words == parse(CHAIN).words and found.text.split() == parse(CHAIN).text.split()
    assert noun_pair(found).relation == "acl:relcl>obl"
    two = of_spacy(spacy_parse(spacy, "a/DET/2/det dog/NOUN/0/ROOT cats/NOUN/0/ROOT"))
    assert two is None
    (tmp_path / "c.txt").write_text("a dog\na cat")
    with pytest.raises(StudyError, match=r"spacy has no model here, and none is downloaded.*spacy download"):
        parse_captions(tmp_path / "c.txt", "spacy:no_such_model", n=9, seed=0)
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(StudyError, match="has no parser"):
        parse_captions(tmp_path / "c.txt", f"spacy:{tmp_path / 'blank'}", n=9, seed=0)

    class Parser:
        pipe_names = ("parser",)

        def pipe(self, texts):
            assert texts == ["a dog", "a cat"]
            return [spacy_parse(spacy, COMPOUND), spacy_parse(spacy, "a/DET/2/det dog/NOUN/0/ROOT cats/NOUN/0/ROOT")]

    monkeypatch.setattr(spacy, "load", lambda name: Parser())
    (one,) = parse_captions(tmp_path / "c.txt", "spacy", n=9, seed=0)
    assert one.words == parse(COMPOUND).words


def test_documents_of_stanza(tmp_path):
    """A document made of dictionaries, as there is no model here; where there is none, it is said how to get one."""
    pytest.importorskip("stanza", reason="stanza is not installed")
    from stanza.models.common.doc import Document

    def document(*sentences):
        return Document([
            [{"id": k, "text": f, "lemma": lemma(f), "upos": p, "head": h, "deprel": r}
             for k, (f, p, h, r) in enumerate(rows(said), 1)] for said in sentences
        ])  # fmt: skip

    assert of_stanza(document(COPULA)) == parse(COPULA)
    assert of_stanza(document(COPULA, CHAIN)) is None
    (tmp_path / "c.txt").write_text("a dog")
    with pytest.raises(StudyError, match=r"stanza has no model here, and none is downloaded.*stanza\.download"):
        parse_captions(tmp_path / "c.txt", f"stanza:{tmp_path / 'none'}", n=9, seed=0)


# ---- which captions


def test_which_noun_governs_the_other():
    for said, head, dependent, kind, relation, first, second in (
        (CHAIN, "man", "chair", HEAD_FIRST, "acl:relcl>obl", 5, 0),
        (COPULA, "table", "flower", DEPENDENT_FIRST, "nsubj", 5, 1),
        (COMPOUND, "house", "dog", DEPENDENT_FIRST, "compound", 1, 0),
    ):
        found = noun_pair(parse(said))
        assert (found.head, found.dependent, found.kind, found.relation) == (head, dependent, kind, relation)
        assert (found.first, found.second) == (first, second)
        ends = {HEAD: found.head, OTHER: found.dependent}
        forms = [lemma(word.form) for word in parse(said).words][::-1]
        assert {part: forms.index(noun) for part, noun in ends.items()} == {
            part: found.distance(part) for part in (HEAD, OTHER)
        }
    assert noun_pair(parse(BESIDE)) is None and noun_pair(parse(VERB)) is None
    assert noun_pair(parse("a/DET/2/det dog/NOUN/0/root dogs/NOUN/2/nmod bones/NOUN/2/nmod")) is None  # three
    assert noun_pair(parse("a/DET/2/det boats/NOUN/0/root boats/NOUN/2/nmod")) is None  # twice the same
    with pytest.raises(StudyError, match="in a circle"):
        noun_pair(parse("a/NOUN/2/nmod b/DET/1/nmod c/NOUN/0/root"))


def test_selection_against_a_closure_of_the_tree():
    """Random trees: which word governs which, by powers of a matrix."""
    generator = np.random.default_rng(0)
    kinds = Counter()
    for _ in range(400):
        n = int(generator.integers(2, 9))
        order = generator.permutation(n)
        heads = [-1] * n
        for k in range(1, n):
            heads[order[k]] = int(order[generator.integers(k)])
        pos = generator.choice(["NOUN", "DET", "VERB", "PROPN"], n, p=[0.3, 0.35, 0.25, 0.1])
        told = generator.choice(["nmod", "obl", "acl:relcl", "conj", "flat:name"], n, p=[0.4, 0.3, 0.1, 0.1, 0.1])
        words = tuple(
            Word(form=f"w{k}", lemma=f"w{k}", pos=pos[k], head=heads[k], relation=str(told[k])) for k in range(n)
        )
        found = noun_pair(Parse(text="x", words=words))
        step = np.zeros((n, n), bool)
        for k, head in enumerate(heads):
            if head >= 0:
                step[head, k] = True
        above = np.linalg.matrix_power(np.eye(n) + step, n) > 0
        nouns = [k for k in range(n) if pos[k] in ("NOUN", "PROPN")]
        governs = [(a, b) for a, b in itertools.permutations(nouns, 2) if above[a, b]] if len(nouns) == 2 else []
        if governs:
            ((a, b),) = governs
            between = [k for k in range(n) if above[a, k] and above[k, b] and k != a]
            if any(told[k] in ("conj", "flat:name") for k in between):
                governs = []
        assert (found is not None) == bool(governs)
        if found is not None:
            assert (found.head, found.dependent) == (f"w{a}", f"w{b}")
            assert sorted(found.relation.split(">")) == sorted(told[k] for k in between)
            assert (found.kind == HEAD_FIRST) == (a < b)
            assert (found.first, found.second) == (n - 1 - min(a, b), n - 1 - max(a, b))
            kinds[found.kind] += 1
    assert min(kinds.values()) > 10


def test_balance_against_counts():
    """As many matches as the rarer kind has in every stratum, no caption twice, and both distances equal in each."""
    generator = np.random.default_rng(1)
    for seed in range(20):
        pairs = [
            pair((HEAD_FIRST, DEPENDENT_FIRST)[generator.integers(2)], int(generator.integers(3, 6)),
                 int(generator.integers(0, 3)), number)
            for number in range(40)
        ]  # fmt: skip
        found = balanced(pairs, 1000, np.random.default_rng(seed))
        assert all(
            (a.kind, b.kind) == (HEAD_FIRST, DEPENDENT_FIRST) and (a.first, a.second) == (b.first, b.second)
            for a, b in found
        )
        every = [one.text for match in found for one in match]
        assert len(set(every)) == len(every)
        counts = Counter((one.first, one.second, one.kind) for one in pairs)
        assert len(found) == sum(
            min(counts[first, second, HEAD_FIRST], counts[first, second, DEPENDENT_FIRST])
            for first in (3, 4, 5) for second in (0, 1, 2)
        )  # fmt: skip
        assert balanced(pairs, 1000, np.random.default_rng(seed)) == found
        some = balanced(pairs, 5, np.random.default_rng(seed))
        assert len(some) == 5 and set(some) <= set(found)
    assert balanced(pairs, 5, np.random.default_rng(98)) != balanced(pairs, 5, np.random.default_rng(99))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([pair(number=k) for k in range(7)], "caption, head first: 7, caption, dependent first: 0"),
        ([pair(DEPENDENT_FIRST), pair(DEPENDENT_FIRST, 2)], "caption, head first: 0, caption, dependent first: 2"),
        ([pair(), pair(DEPENDENT_FIRST, 3)], "caption, head first: 1, caption, dependent first: 1"),
        ([], "caption, head first: 0"),
    ],
)
def test_too_few_captions_are_refused_with_how_many_there_are(pairs, said):
    with pytest.raises(StudyError, match=said):
        balanced(pairs, 9, np.random.default_rng(0))


def test_what_is_asked_of_captions():
    one = NounPair(text="an apple on a uniform", head="apple", dependent="uniform", kind=HEAD_FIRST, relation="nmod",
                   first=3, second=0)  # fmt: skip
    two = NounPair(text="a dog house", head="house", dependent="dog", kind=DEPENDENT_FIRST, relation="compound",
                   first=3, second=0)  # fmt: skip
    first, second = ask_of_captions([(one, two)], np.random.default_rng(0))
    assert first.questions == {HEAD: "Is there an apple?", OTHER: "Is there a uniform?"}
    assert second.questions == {HEAD: "Is there a house?", OTHER: "Is there a dog?"} and second.kind == DEPENDENT_FIRST
    assert first.captions == {HEAD: "an apple", OTHER: "a uniform"}
    assert set(first.alternatives[HEAD]) == {"a house", "a dog"} and first.prompt == one.text


# ---- the estimator


def nouns(n=9, sites=6, seed=0):
    generator = np.random.default_rng(seed)
    rises = np.sort(generator.random((2 * n, 2, sites)), axis=-1)
    return Nouns(rises, generator.integers(0, 3, (2 * n, 2)), np.arange(2 * n) < n)


def test_leads_against_loops():
    found = nouns()
    for chosen in (np.arange(18), np.array([0, 3, 4, 11, 17]), np.array([2, 9])):
        half = {}
        for first in (True, False):
            own = [k for k in chosen if found.is_head_first[k] == first]
            for noun in (0, 1):
                half[first, noun] = half_rise(np.mean([found.rises[k, noun] for k in own], axis=0))
        leads = [half[first, 1] - half[first, 0] for first in (True, False)]
        assert found.head_lead(chosen) == pytest.approx((leads[0] + leads[1]) / 2)
        assert found.first_lead(chosen) == pytest.approx((leads[0] - leads[1]) / 2)
        said = {True: [], False: []}  # named first, named last: (distance, curve)
        for k in chosen:
            for noun in (0, 1):
                named_first = (noun == 0) == bool(found.is_head_first[k])
                said[named_first].append((found.distances[k, noun], found.rises[k, noun]))
        parts = {True: np.zeros(6), False: np.zeros(6)}
        for far in range(3):
            own = {which: [curve for d, curve in some if d == far] for which, some in said.items()}
            for which, some in own.items():
                if min(map(len, own.values())):
                    parts[which] += min(map(len, own.values())) * np.mean(some, axis=0)
        if parts[True].any():
            expected = half_rise(parts[False] / parts[False][-1]) - half_rise(parts[True] / parts[True][-1])
            assert found.lead_at_one_distance(chosen) == pytest.approx(expected)
        else:
            assert found.lead_at_one_distance(chosen) is None
    assert found.head_lead(np.arange(9)) is None and found.first_lead(np.arange(9, 18)) is None
    flip = np.random.default_rng(2).random(18) < 0.5
    mixed = found.exchanged(flip)
    for k in range(18):
        assert (mixed.rises[k] == found.rises[k][:: -1 if flip[k] else 1]).all()
        assert (mixed.distances[k] == found.distances[k][:: -1 if flip[k] else 1]).all()


class Setup(TextSetup):
    """A setup whose judge has looked already."""

    seed, found = 4, None

    def __init__(self, found):
        object.__setattr__(self, "found", found)

    def answers(self, name, asked, **options):
        return self.found

    def describe(self):
        return {"encoder": "planted"}

    def generator(self, *stream):
        return np.random.default_rng([self.seed, *stream])


@pytest.mark.parametrize("truth", ["linear", "syntactic", "distance"])
def test_a_planted_order_is_found_and_the_others_are_not(truth):
    """What is right early: what is named first, the head, or what is farther from the end than two words.

    Captions are 5 and 2, or 2 and 0 words before the end, so that 2 is the distance of nouns named first and last.
    """
    matches = [
        (pair(HEAD_FIRST, *far, number=number), pair(DEPENDENT_FIRST, *far, number=number))
        for number, far in enumerate([(5, 2), (2, 0)] * 6)
    ]
    found = {}
    for column, kind in enumerate((HEAD_FIRST, DEPENDENT_FIRST)):
        right = np.zeros((12, 2, 7, 2))
        for k, match in enumerate(matches):
            for noun, part in enumerate((HEAD, OTHER)):
                is_first = (noun == 0) == (kind == HEAD_FIRST)
                far = match[column].distance(part)
                early = {"linear": is_first, "syntactic": noun == 0, "distance": far > 2}[truth]
                right[k, :, 1 if early else 5 :, noun] = 1
        found[kind] = LayerAnswers(
            kind=kind, prompts=tuple(map(str, range(12))), sites=tuple("abcdefg"), parts=(HEAD, OTHER), right=right,
            mismatched=right * 0, residual=np.zeros(right.shape[:3]),
        )  # fmt: skip
    told = captions_order_study(Setup(found), [], matches, about={"parser": "none"}, n_shuffles=60)
    value = {one.measure: one.estimate.value for one in told.scores}
    expected = {
        "linear": {SYNTACTIC: 0.0, LINEAR: 4.0, AT_ONE_DISTANCE: 4.0},
        "syntactic": {SYNTACTIC: 4.0, LINEAR: 0.0, AT_ONE_DISTANCE: 0.0},
        "distance": {SYNTACTIC: 0.0, AT_ONE_DISTANCE: 0.0},
    }[truth]
    assert {name: value[name] for name in expected} == expected
    assert truth != "distance" or value[LINEAR] > 1  # within a caption the two cannot be told apart
    assert all(abs(one.nulls["exchanged"].mean) < 1 and one.n == 24 for one in told.scores)
    assert told.frame("distances").values.tolist() == [[2, 0, 6], [5, 2, 6]] and len(told.frame("captions")) == 24


# ---- end to end

CAPTIONS = [
    "a/DET/2/det star/NOUN/0/root above/ADP/5/case a/DET/5/det ring/NOUN/2/nmod",
    "a/DET/2/det cross/NOUN/0/root above/ADP/5/case two/NUM/5/det star/NOUN/2/nmod",
    "red/ADJ/2/amod ring/NOUN/0/root of/ADP/5/case a/DET/5/det cross/NOUN/2/nmod",
    "a/DET/2/det star/NOUN/5/nsubj left/ADP/5/case a/DET/5/det ring/NOUN/0/root",
    "two/DET/2/det cross/NOUN/5/nsubj above/ADP/5/case a/DET/5/det star/NOUN/0/root",
    "a/DET/2/det ring/NOUN/5/nmod:poss and/ADP/2/case big/ADJ/5/amod star/NOUN/0/root",
    "a/DET/2/det star/NOUN/0/root and/CCONJ/4/cc ring/NOUN/2/conj",
]


class Fake:
    """A judge that answers by the picture's bytes."""

    name = "fake"

    def check(self, questions):
        assert len(questions) == 12 and all(one.text.startswith("Is there a") for one in questions)

    def answer(self, picture, questions):
        from vit_lens.studies.annotate import Verdict

        return [Verdict("yes" if sum(picture.tobytes()) % 3 else "no", 0.5) for _ in questions]


def test_the_command_on_a_pipeline_of_ones_own(tmp_path, vit_lens, monkeypatch):
    from vit_lens.studies import annotate, load_result

    folder, path, out = tmp_path / "sd", tmp_path / "mine.conllu", tmp_path / "out"
    tiny_pipelines.make("sd1").save_pretrained(folder)
    path.write_text(conllu(*CAPTIONS))
    monkeypatch.setattr(annotate, "named_judge", lambda name, device: Fake(), raising=False)
    line = ["study", "order", "--model", folder, "--captions", path, "--parser", "conllu", "--judge", "vqa:fake"]
    line += ["--steps", 1, "--decoder-seed", 0, "--out", out]
    status, said, err = vit_lens(*line)
    assert status == 0, err
    assert "7 captions parsed; caption, head first: 3, caption, dependent first: 3; 3 of each are matched" in said
    found = load_result(out)
    assert [one.measure for one in found.scores] == [SYNTACTIC, LINEAR, AT_ONE_DISTANCE]
    assert {one.reading for one in found.scores} == {"Diffusion Lens, captions"} and found.scores[0].n == 6
    assert found.options["parsed"] == 7 and found.setup["judge"] == "fake"
    told = found.frame("captions")
    assert sorted(told["caption"]) == sorted(parse(one).text for one in CAPTIONS[:6])
    before = (out / "captions" / "record.json").stat().st_mtime_ns
    assert vit_lens(*line)[0] == 0 and load_result(out).scores == found.scores
    assert (out / "captions" / "record.json").stat().st_mtime_ns == before


def test_options_that_do_not_go_together(tmp_path, vit_lens):
    path = tmp_path / "mine.conllu"
    path.write_text(conllu(*CAPTIONS[:3]))
    for more, said in (
        (["--parser", "conllu"], "caption, head first: 3, caption, dependent first: 0"),
        (["--parser", "conllu", "--prompt-table", path], "give --captions or --prompt-table"),
        ([], "--captions needs --parser"),
    ):
        status, _, err = vit_lens("study", "order", "--captions", path, *more, "--out", tmp_path / "o")
        assert status == 2 and said in " ".join(err.split())
    status, _, err = vit_lens("study", "order", "--parser", "spacy", "--out", tmp_path / "o")
    assert status == 2 and "--parser goes with --captions" in err
    path.write_text(conllu(*CAPTIONS))
    status, _, err = vit_lens("study", "order", "--captions", path, "--parser", "conllu", "--out", tmp_path / "o")
    assert status == 2 and "was not drawn from it; take --judge" in " ".join(err.split())
