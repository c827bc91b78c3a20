"""What units fire on, in words: oracle, protocols and results against slow code, models that are down, slow or odd."""

import json
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import test_annotate_judges as judges
import tiny_dictionaries as tiny
import torch
from PIL import Image

from vit_lens.errors import ExplanationError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def oracle():
    from vit_lens.explaining import AttributeOracle

    return AttributeOracle.of_world(700, seed=3)


@pytest.fixture(scope="module")
def source(oracle):
    """The patches of the oracle's scenes, behind block 5 of mini."""
    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    read = vl.ActivationSource.of_model(model, oracle.pictures, "L5.resid_post", tokens="patches", inputs_at_once=64)
    tokens = read.reader.read(read.inputs)[0].view(700, 16, 128)
    return vl.ActivationSource.of_array(tokens, read.provenance)


@pytest.fixture(scope="module")
def topk():
    import vit_lens as vl

    return vl.Dictionary.from_pretrained("mini-topk")


@pytest.fixture(scope="module")
def units(topk, source):
    from vit_lens.explaining import Units

    return Units.of_dictionary(topk, source)


# ---- the oracle


def test_the_oracle_explains_and_judges_as_one_would_by_hand(oracle):
    from vit_lens.mini import world

    generator, pictures = np.random.default_rng(0), oracle.pictures
    assert len(oracle.values) == sum(map(len, world.ATTRIBUTES.values())) == len(set(oracle.values))
    for _ in range(20):
        rows = generator.choice(700, 5, replace=False)
        best, found = -1.0, None
        for name, values in world.ATTRIBUTES.items():
            for value in values:
                share = sum(getattr(oracle.scenes[row], name) == value for row in rows) / 5
                lift = share - sum(getattr(scene, name) == value for scene in oracle.scenes) / 700
                if lift > best + 1e-12:
                    best, found = lift, f"{name} {value}"
        assert oracle.explain([pictures[row] for row in rows], [torch.zeros(4, 4)] * 5) == found
        name, _, value = found.partition(" ")
        for row in range(30):
            assert oracle.judge(pictures[row], found) == float(getattr(oracle.scenes[row], name) == value)


def rendered_shares(scene):
    """How much of each pixel shows background, object and overlay, from what changes with the background's colour."""
    from vit_lens.mini import world

    def ground(one):
        pair = [replace(one, background=colour, pattern="plain") for colour in ("white", "mint")]
        white, mint = world.render(pair).astype(float)[..., 0]
        return (white - mint) / (250 - 170)

    bare = world.without_overlay(scene)
    body, plate = 1 - ground(bare), np.zeros((64, 64))
    if scene.symbol is not None:
        away = replace(scene, size="small", row="middle", column="centre")
        free = ground(world.without_overlay(away))
        plate = np.where(free > 0.5, 1 - ground(away) / np.maximum(free, 0.5), 0)
    return {"object": body * (1 - plate), "overlay": plate, "ground": (1 - body) * (1 - plate)}


def test_the_oracle_marks_the_patches_on_which_a_value_is_drawn(oracle):
    """Against pixels of rendered scenes; a patch that is at the edge of counting may fall on either side."""
    pictures, seen = oracle.pictures, set()
    for row, scene in enumerate(oracle.scenes[:60]):
        shares = {part: pixels.reshape(4, 16, 4, 16).mean((1, 3)) for part, pixels in rendered_shares(scene).items()}
        for value, part in {
            f"colour {scene.colour}": "object", f"shape {scene.shape}": "object", f"row {scene.row}": "object",
            f"background {scene.background}": "ground", f"pattern {scene.pattern}": "ground",
            f"symbol {scene.symbol}": "overlay", f"corner {scene.corner}": "overlay",
        }.items():  # fmt: skip
            if not value.endswith("None"):
                marks, share = oracle.localise(pictures[row], value).numpy(), shares[part]
                clear = abs(share - share.max() / 2) > 0.02
                assert clear.sum() > 8 and (marks == (share >= share.max() / 2))[clear].all(), (scene, value)
                seen.add((part, int(marks.sum())))
    assert {part for part, _ in seen} == {"object", "overlay", "ground"} and len(seen) > 8
    other = "blue" if oracle.scenes[0].colour == "red" else "red"
    assert oracle.localise(pictures[0], f"colour {other}").sum() == 0


def test_what_the_oracle_does_not_know(oracle):
    from vit_lens.explaining import AttributeOracle

    with pytest.raises(ExplanationError, match="does not know this image of 20 x 20 pixels; it knows 700 scenes"):
        oracle.judge(Image.new("RGB", (20, 20)), "colour red")
    with pytest.raises(ExplanationError, match="no value 'color red' in the embedded world; nearest: 'colour red'"):
        oracle.judge(oracle.pictures[0], "color red")
    with pytest.raises(ExplanationError, match="no images to explain"):
        oracle.explain([], [])
    with pytest.raises(ExplanationError, match="1 images and 2 scenes"):
        AttributeOracle(oracle.pictures[:1], oracle.scenes[:2])
    with pytest.raises(ExplanationError, match="images 0 and 1 are alike"):
        AttributeOracle(oracle.pictures[:1] * 2, oracle.scenes[:2])


# ---- units


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "signed"])
def test_units_do_on_images_what_the_dictionary_does_on_tokens(kind):
    import vit_lens as vl
    from vit_lens.explaining import Units

    dictionary = tiny.make(kind)
    x = tiny.randn(11, 6, 35, seed=5)
    source = vl.ActivationSource.of_array(x, buffer=4)
    units = Units.of_dictionary(dictionary, source)
    strongest, rates = units.strongest(), units.rates([1, 3, 8])
    codes = torch.stack([dictionary.encode(token).abs() for token in x.flatten(0, 1)]).view(11, 6, 53)
    assert np.allclose(strongest, codes.amax(1).numpy(), atol=1e-5) and (strongest == 0).any()
    assert np.allclose(rates, (codes[[1, 3, 8]] > 0).double().mean((0, 1)).numpy())
    for unit, image in ((0, 0), (52, 10), (17, 4)):
        assert torch.allclose(units.map(unit, image).double(), codes[image, :, unit], atol=1e-5)
    with pytest.raises(
        ExplanationError, match=r"no unit 53 of dictionary: there are 53, counted from 0; nearest: '52'"
    ):
        units.unit(53)


def test_dense_units_are_cut_where_they_fire_as_often():
    import vit_lens as vl
    from vit_lens.explaining import Units

    x, rows = tiny.randn(200, 5, 7, dtype=torch.float32), tiny.randn(9, 7, seed=2, dtype=torch.float32)
    source = vl.ActivationSource.of_array(x)
    units = Units.cut("random", lambda tokens: tokens @ rows.T, rows, source, 0.04, range(100))
    assert np.allclose(units.rates(range(100)), 0.04, atol=0.003)
    assert not np.allclose(units.rates(range(100, 200)), units.rates(range(100)))
    projected = (x @ rows.T).numpy()
    for unit in range(9):
        ordered = np.sort(projected[:100, :, unit].flatten())
        cut = ordered[479] + 0.04 * (ordered[480] - ordered[479])
        own = np.where(projected[..., unit] >= cut, projected[..., unit], 0).max(1)
        assert np.allclose(units.strongest()[:, unit], own, atol=1e-5)
    for rate in (0.0, 1.0):
        with pytest.raises(ExplanationError, match="expected the share of tokens"):
            Units.cut("random", lambda tokens: tokens, rows, source, rate, range(100))


def test_what_stands_beside_a_dictionary(topk, source):
    import vit_lens as vl
    from vit_lens.explaining import Units, units_beside

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    neurons = vl.ActivationSource.of_array(tiny.randn(700, 16, 512, dtype=torch.float32))
    inputs = range(0, 700, 2)
    found = units_beside(topk, source, source, inputs=inputs, neurons=neurons, model=model)
    counts = {one.name: len(one.directions) for one in found}
    assert counts == {"untrained": 512, "random directions": 512, "PCA": 256, "data points": 512, "neurons": 512}
    own = Units.of_dictionary(topk, source).rates(inputs)
    for one in found:
        if one.name in ("random directions", "PCA", "neurons"):
            assert np.median(one.rates(inputs)) == pytest.approx(np.median(own[own > 0]), rel=0.05)
    assert torch.equal(found[-1].directions, model.W_out[5])
    assert [one.name for one in units_beside(topk, source, source, inputs=inputs, names=["neurons"])] == []
    with pytest.raises(ExplanationError, match="nothing called 'neuron' stands beside it; nearest: 'neurons'"):
        units_beside(topk, source, source, inputs=inputs, names=["neuron"])


# ---- the protocols


def test_units_are_explained_on_some_images_and_tested_on_others(units, oracle):
    """Every choice and every number, against the codes and the scenes."""
    from vit_lens.explaining import Halves, explain

    found = explain([units], oracle.pictures, oracle, n=25, least=20, seed=4)
    strengths, (explains, tests) = units.strongest(), Halves.of(700, seed=4)
    assert not set(explains) & set(tests) and len(explains) + len(tests) == 700
    assert len(found.rows) == 25 and len(found.rows) + len(found.skipped) < 512
    rows = torch.nn.functional.normalize(units.directions, dim=1)
    for row in found.rows:
        own = strengths[:, row.unit]
        order = sorted((i for i in explains if own[i] > 0), key=lambda i: (-own[i], i))
        n = len(order)
        assert row.explained_on == (*order[:3], order[-(-n // 2)], order[-(-3 * n // 4)])
        tested = sorted((i for i in tests if own[i] > 0), key=lambda i: (-own[i], i))
        spread = [tested.index(i) / len(tested) for i in row.positives]
        assert np.allclose(spread, np.arange(0.05, 1, 0.1), atol=1 / len(tested))
        assert len(set(row.negatives)) == 10 and set(row.negatives) <= set(tests)
        assert (own[list(row.negatives)] == 0).all() and (own[list(row.positives)] > 0).all()
        assert not set(row.explained_on) & {*row.positives, *row.negatives}
        silent = [i for i in tests if own[i] == 0]
        near = (rows @ rows[row.unit]).argsort(descending=True)[1:].tolist()
        strongest = [
            max(silent, key=lambda i, u=u: (strengths[i, u], -i)) for u in near[:2] if strengths[silent, u].max()
        ]
        assert set(strongest) <= set(row.negatives[:5])
        holds = oracle.holds[:, oracle.values.index(row.text)]
        images = [*row.positives, *row.negatives]
        assert row.score == pytest.approx((holds[images[:10]].mean() + 1 - holds[images[10:]].mean()) / 2)
        pairs = [(own[i], own[j]) for i in images for j in images if holds[i] and not holds[j]]
        expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]) if pairs else None
        assert row.auc == (None if expected is None else pytest.approx(expected))
        found_at = [by_place(units, oracle, row, i) for i in row.positives if holds[i]]
        found_at = [one for one in found_at if one is not None]
        assert row.localisation == (pytest.approx(np.mean(found_at)) if found_at else None)
    assert found == explain([units], oracle.pictures, oracle, n=25, least=20, seed=4)


def by_place(units, oracle, row, image):
    marks = oracle.localise(oracle.pictures[image], row.text).flatten().numpy() > 0
    map = units.map(row.unit, image).numpy()
    pairs = [(a, b) for a, m in zip(map, marks, strict=True) for b, o in zip(map, marks, strict=True) if m and not o]
    return np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]) if pairs else None


class Seen:
    """A judge that remembers what it was asked."""

    name = "seen"

    def __init__(self):
        self.asked = []

    def judge(self, image, text, map=None):
        self.asked.append((image, text, map))
        return 0.25

    def localise(self, image, text):
        raise AssertionError("nothing holds")


def test_the_published_protocol_tests_what_it_explained(units, oracle):
    from vit_lens.explaining import Halves, explain

    judge, pictures = Seen(), oracle.pictures
    found = explain([units], pictures, oracle, judge, protocol="paper", n=9, least=20)
    strengths, explains = units.strongest(), Halves.of(700, seed=0).explain
    counts = (strengths[explains] > 0).sum(0)
    for place, row in enumerate(found.rows):
        own = strengths[:, row.unit]
        order = sorted((i for i in explains if own[i] > 0), key=lambda i: (-own[i], i))
        assert row.explained_on == row.positives == tuple(order[:5]) and len(row.negatives) == 5
        asked = judge.asked[place * 20 : place * 20 + 10]
        assert [one[0] for one in asked] == [pictures[i] for i in (*row.positives, *row.negatives)]
        assert {one[1] for one in asked} == {row.text}
        for (_, _, map), image in zip(asked[:5], row.positives, strict=True):
            assert torch.equal(map.flatten(), units.map(row.unit, image))
        others = set()
        for (_, _, map), image in zip(asked[5:], row.negatives, strict=True):
            fits = [u for u in range(512) if torch.equal(map.flatten(), units.map(u, image)) and map.any()]
            assert any(
                image == max(explains, key=lambda i, u=u: (strengths[i, u], -i)) and counts[u] >= 5 for u in fits
            )
            others |= set(fits)
        assert row.unit not in others and len(others) >= 5
        assert row.score == pytest.approx((5 * 0.25 + 5 * 0.75) / 10) and row.auc is row.localisation is None


class Constant(Seen):
    name = "constant"

    def judge(self, image, text, map=None):
        return 0.5


@pytest.mark.parametrize("protocol", ["mended", "paper"])
def test_a_constant_judge_scores_a_half_exactly(units, oracle, protocol):
    from vit_lens.explaining import explain

    found = explain([units], oracle.pictures, oracle, Constant(), protocol=protocol, n=30, least=20)
    assert {(row.score, row.shuffled, row.constant) for row in found.rows} == {(0.5, 0.5, 0.5)}
    assert found.judge == "constant" and found.explainer == "oracle"


@pytest.mark.parametrize("protocol", ["mended", "paper"])
def test_shuffled_explanations_score_about_a_half(units, oracle, protocol):
    from vit_lens.explaining import explain

    found = explain([units], oracle.pictures, oracle, protocol=protocol, least=15)
    assert len(found.rows) > 250
    assert abs(found.values("dictionary", "shuffled").mean() - 0.5) < 0.03
    assert found.values("dictionary").mean() > 0.56  # and theirs do not
    texts = [row.text for row in found.rows]
    own = [oracle.holds[list(row.positives), oracle.values.index(row.text)].mean() for row in found.rows]
    assert len(set(texts)) > 15 and np.mean(own) > 0.3


def test_units_of_which_nothing_can_be_said(topk, source, oracle):
    from vit_lens.explaining import Units, explain

    bias = topk.b_enc.clone()
    bias[3], bias[5] = -6e4, 6e4
    units = Units.of_dictionary(replace(topk, b_enc=bias), source)
    pictures = oracle.pictures
    found = explain([units], pictures, oracle, n=3, least=20)
    why = {one.unit: one.why for one in found.skipped}
    assert why[3] == "never fires" and why[5] == "is silent on 0 images that test; 10 are needed"
    few = next(one for one in found.skipped if one.unit not in (3, 5) and one.why != "never fires")
    assert few.why.startswith("fires on ") and few.why.endswith(" that test; 20 of each are needed")
    counts = found.counts()["dictionary"]
    assert counts["explained"] == 3 and counts["never fires"] + counts["too few or many"] == len(found.skipped)
    assert f"{counts['never fires']} never fire" in str(found)
    one = explain([units], pictures, oracle, features=[few.unit, found.rows[0].unit], least=20)
    assert [row.unit for row in one.rows] == [found.rows[0].unit] and one.rows[0].shuffled is None
    for features, message in [
        ([3], "nothing to explain in Units.*: unit 3 never fires; give more images"),
        ([few.unit], f"unit {few.unit} fires on .* 20 of each are needed"),
        ([512], "no unit 512 of dictionary: there are 512, counted from 0; nearest: '511'"),
    ]:
        with pytest.raises(ExplanationError, match=message):
            explain([units], pictures, oracle, features=features, least=20)
    for options, message in [
        ({"protocol": "mend"}, "protocol='mend'; nearest: 'mended'"),
        ({"least": 9}, "least=9; expected .* at least 10"),
        ({"n": 0}, "n=0; expected"), ({"least": 400}, "700 images, and a unit has to fire on 400 of each half"),
        ({"grid": (3, 5)}, "16 patches are no 3 x 5"),
    ]:  # fmt: skip
        with pytest.raises(ExplanationError, match=message):
            explain([units], pictures, oracle, **{"least": 20, "n": 2, **options})
    with pytest.raises(ExplanationError, match="and 5 images were given"):
        explain([units], pictures[:5], oracle)
    with pytest.raises(ExplanationError, match="give each a name of its own"):
        explain([units, units], pictures, oracle)
    sure = Constant()
    sure.judge = lambda image, text, map=None: 1.5
    with pytest.raises(ExplanationError, match=r"judge constant says 1.5; expected a number from 0 to 1"):
        explain([units], pictures, oracle, sure, n=2, least=20)
    with pytest.raises(ExplanationError, match="judges nothing; give a judge="):
        explain([units], pictures, Mute(), n=2, least=20)


class Mute:
    name = "mute"

    def explain(self, images, maps):
        return "?"


def test_results_are_saved_and_read(units, topk, source, oracle, tmp_path):
    from vit_lens.explaining import Explanations, explain, units_beside

    kinds = [units, *units_beside(topk, source, source, inputs=range(350), names=["untrained"])]
    found = explain(kinds, oracle.pictures, oracle, n=12, least=20)
    path = found.save(tmp_path / "deep" / "explanations.json")
    assert Explanations.load(path) == found
    frame = found.to_frame()
    assert list(frame["kind"]) == ["dictionary"] * 12 + ["untrained"] * 12
    assert frame["score"][:12].is_monotonic_decreasing and set(frame["unit"][:12]) == {r.unit for r in found.rows[:12]}
    a, b = (found.values(kind) for kind in ("dictionary", "untrained"))
    both = found.minus("dictionary", "untrained")
    assert both.value == pytest.approx(a.mean() - b.mean()) and both.low < both.value < both.high
    error = np.sqrt(a.var() / 12 + b.var() / 12)
    assert both.high - both.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    for call in (lambda: found.values("untraind"), lambda: found.values("untrained", "scores")):
        with pytest.raises(ExplanationError, match=r"nearest: '(untrained|score)'"):
            call()
    said = json.loads(path.read_text())
    for change, message in [
        ({"format": "other"}, "has format 'other'"), ({"seed": "x"}, "seed is 'x'"),
        ({"more": 1}, "unknown key 'more'"),
        ({"rows": [{"kind": "x"}]}, "unit is missing"), ({"rows": 3}, "no list of units"),
        ({"skipped": [{"kind": "x", "unit": 1, "why": 2}]}, "why is 2"),
    ]:  # fmt: skip
        path.write_text(json.dumps({**said, **change}))
        with pytest.raises(ExplanationError, match=message):
            Explanations.load(path)
    with pytest.raises(ExplanationError, match="no such file"):
        Explanations.load(tmp_path / "none.json")


# ---- models


def test_replies_are_kept_word_for_word(tmp_path):
    from vit_lens.explaining import Replies

    path, calls = tmp_path / "kept" / "replies.jsonl", []

    def ask(replies, words, reply="4"):
        return replies.ask(["me", words], lambda: calls.append(words) or reply, int)

    replies = Replies(path)
    assert [ask(replies, "a"), ask(replies, "b"), ask(replies, "a")] == [4, 4, 4] and calls == ["a", "b"]
    with pytest.raises(ValueError, match="invalid literal"):
        ask(replies, "c", "nonsense")
    with path.open("ab") as file:
        file.write(b'{"key": "cut in the mid')
    again = Replies(path)
    assert len(again) == 2 and ask(again, "b") == 4 and calls == ["a", "b", "c"]
    assert ask(again, "d", "7") == 7 and len(Replies(path)) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[2]["asked"] == ["me", "d"] and lines[2]["reply"] == "7"
    path.write_text('{"key": "a", "asked": [], "reply": "4", "more": 1}\n')
    with pytest.raises(ExplanationError, match=r"line 1, holds .* no reply; remove the file"):
        Replies(path)
    path.write_text("no json\n")
    with pytest.raises(ExplanationError, match="line 1, cannot be read as JSON"):
        Replies(path)


@pytest.mark.parametrize("kind", ["t5", "opt", "llava"])
def test_a_local_model_explains_and_judges(kind, tmp_path):
    from vit_lens.explaining import PipelineVLM, Replies, highlighted

    model, processor = judges.llava() if kind == "llava" else judges.blip(kind)
    folder = judges.saved(tmp_path / "model", model, processor)
    vlm = PipelineVLM.load(folder, replies=Replies(tmp_path / "replies.jsonl"))
    shown, map = [judges.picture(), judges.picture().rotate(90)], torch.rand(2, 3)
    assert vlm.name == "vlm:model"
    try:
        text = vlm.explain(shown, [map, map])
        assert text and text == vlm.explain(shown, [map, map])
    except ExplanationError as error:  # random weights may end at once
        assert "no words; take another model" in str(error) or "cannot write 60 tokens" in str(error)
    sure = vlm.judge(shown[0], "a red star")
    asked = 'Does this picture show what these words describe: "a red star"? Be very critical.'
    yes, no = vlm._model.chances(shown[0], asked)
    assert sure == pytest.approx(yes / (yes + no)) and 0 < sure < 1
    under = vlm.judge(shown[0], "a red star", map)
    asked = asked.replace("Does this picture show", "Do the regions of this picture that are highlighted in blue show")
    yes, no = vlm._model.chances(highlighted(shown[0], map), asked)
    assert under == pytest.approx(yes / (yes + no)) and under != sure
    places = vlm.localise(shown[0], "a red star")
    assert places.shape == (4, 4) and places[1, 2] == vlm.judge(shown[0].crop((11, 5, 16, 10)), "a red star")
    again = PipelineVLM.load(folder, replies=Replies(tmp_path / "replies.jsonl"))
    again._model.chances = lambda *_: pytest.fail("asked again")
    assert again.judge(shown[0], "a red star") == sure
    with pytest.raises(ExplanationError, match=r"holds no config\.json"):
        PipelineVLM.load(tmp_path)


def test_highlights_are_where_a_unit_fires():
    from vit_lens.explaining import highlighted

    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    shown = np.asarray(highlighted(grey, torch.tensor([[0.0, 2.0], [0.5, 0.0]]))).astype(int)
    assert (shown[:20, :20] == 128).all() and (shown[20:, 20:] == 128).all()
    strong = [round(128 + 0.7 * (c - 128)) for c in (8, 48, 107)]
    assert (abs(shown[:20, 20:] - strong) <= 1).all()
    assert shown[30, 10, 0] < 255 and (shown[30, 10] != 128).any()
    assert (np.asarray(highlighted(grey, torch.zeros(2, 2))) == 128).all()


class Server:
    """An endpoint that answers what it is told: text of a reply, a status, bytes, or seconds to wait."""

    def __init__(self):
        self.asked, self.answers = [], {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(said)
                status, body = outer.answer(said["response_format"]["json_schema"]["name"])
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # who asked has gone
                    pass

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, kind):
        said = self.answers[kind]
        if isinstance(said, float):
            time.sleep(said)
            said = "late"
        if isinstance(said, tuple):
            return said
        message = {"role": "assistant", "content": said if isinstance(said, str) else json.dumps(said)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return 200, json.dumps(body).encode()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "any word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    found = Server()
    yield found
    found.close()


RIGHT = {
    "explanation": {"pattern_descriptions": ["red", "a star"], "common_pattern": "red \n stars"},
    "score": {"score": 0.75}, "places": {"cells": [[0, 1], [3, 3]]},
}  # fmt: skip


def test_an_endpoint_that_answers_rightly(server, tmp_path):
    from vit_lens.explaining import EndpointVLM, Replies

    server.answers = RIGHT
    vlm = EndpointVLM("m", server.url, retries=0, replies=Replies(tmp_path / "replies.jsonl"))
    picture, map = judges.picture(), torch.rand(2, 2)
    assert vlm.name == "endpoint:m" and vlm.explain([picture] * 2, [map] * 2) == "red stars"
    assert vlm.judge(picture, 'red "stars"') == 0.75 == vlm.judge(picture, 'red "stars"')
    places = vlm.localise(picture, "red stars")
    assert places.nonzero().tolist() == [[0, 1], [3, 3]]
    assert len(server.asked) == 3
    first, second, _ = server.asked
    assert [part["type"] for part in first["messages"][0]["content"]] == ["text", "image_url", "image_url"]
    assert first["temperature"] == 0 and second["model"] == "m"
    schema = second["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["score"] and schema["additionalProperties"] is False
    assert second["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "highlighted" not in second["messages"][0]["content"][0]["text"]
    vlm.judge(picture, "red stars", map)
    assert "highlighted" in server.asked[-1]["messages"][0]["content"][0]["text"]
    server.answers = {"score": (500, b"{}")}
    again = EndpointVLM("m", server.url, retries=0, replies=Replies(tmp_path / "replies.jsonl"))
    assert again.judge(picture, 'red "stars"') == 0.75
    kept = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert kept[1]["reply"] == '{"score": 0.75}' and kept[1]["asked"][1:3] == ["m", "score"]


NONSENSE = [
    ("I see a star.", r"reply 'I see a star\.' cannot be read as JSON"), ({"score": 2}, "score is 2"),
    ({"score": True}, "score is True"), ({"score": "0.5"}, "score is '0.5'"), ({}, r"holds \[\]; expected \['score'\]"),
    ({"score": 0.5, "note": "ignore what was said"}, r"holds \['note', 'score'\]; expected \['score'\]"),
    ('{"score": 0.5, "score": 1}', "occurs twice"), ('{"score": NaN}', "not finite"), ("[" * 5000, "cannot be read"),
    ((200, b"<html>hello</html>"), "answers"), ((200, b"{}"), "no chat completion"),
    ((200, b'{"choices": []}'), "no chat completion"),
    ((200, b'{"choices": [{"message": {}}]}'), "with no text but None"),
    ((404, b'{"error": {"message": "no such model"}}'), "refuses with status 404 .*no such model"),
    ((401, b'{"error": {"message": "who?"}}'), "refuses with status 401"), ((500, b"oops"), "refuses with status 500"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), NONSENSE, ids=range(len(NONSENSE)))
def test_an_endpoint_that_answers_nonsense(server, tmp_path, said, message):
    from vit_lens.explaining import EndpointVLM, Replies

    server.answers = {"score": said}
    vlm = EndpointVLM("m", server.url, retries=0, replies=Replies(tmp_path / "replies.jsonl"))
    with pytest.raises(ExplanationError, match=message):
        vlm.judge(judges.picture(), "red")
    assert not (tmp_path / "replies.jsonl").exists()
    server.answers = RIGHT
    assert vlm.judge(judges.picture(), "red") == 0.75


def test_places_and_words_that_are_none(server):
    from vit_lens.explaining import EndpointVLM

    vlm = EndpointVLM("m", server.url, retries=0)
    for cells in ([[0, 4]], [[-1, 0]], [[0]], [[0.5, 1]], "all"):
        server.answers = {"places": {"cells": cells}}
        with pytest.raises(ExplanationError, match="cells is"):
            vlm.localise(judges.picture(), "red")
    server.answers = {"explanation": {"pattern_descriptions": [], "common_pattern": " \n\x00 "}}
    with pytest.raises(ExplanationError, match="no words; take another model"):
        vlm.explain([judges.picture()], [torch.rand(2, 2)])
    server.answers = {"explanation": {"pattern_descriptions": [], "common_pattern": "x " * 5000}}
    assert len(vlm.explain([judges.picture()], [torch.rand(2, 2)])) == 500


def test_an_endpoint_that_is_slow_or_down(server, monkeypatch):
    from vit_lens.explaining import EndpointVLM

    server.answers = {"score": 1.5}
    vlm = EndpointVLM("m", server.url, timeout=0.3, retries=0)
    with pytest.raises(ExplanationError, match=r"gave no answer within 0\.3 s; is the model loaded there\?"):
        vlm.judge(judges.picture(), "red")
    server.close()
    with pytest.raises(ExplanationError, match=r"cannot be reached .*start the server"):
        vlm.judge(judges.picture(), "red")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ExplanationError, match="set OPENAI_API_KEY in the environment"):
        EndpointVLM("m", server.url)


def test_without_its_package(monkeypatch):
    import sys

    from vit_lens.explaining import EndpointVLM

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ExplanationError, match=r"pip install 'vit-lens\[vlm\]'"):
        EndpointVLM("m", "http://127.0.0.1:9/v1")


# ---- the command

SMALL = ["--scenes", "260", "--units", "6", "--least", "10", "--strips", "0"]


def test_the_command_on_the_embedded_model(vit_lens, tmp_path):
    from vit_lens.explaining import Explanations

    out = tmp_path / "out"
    beside = ("--beside", "untrained", "--beside", "neurons")
    command = ("dict", "explain", "mini-topk", *SMALL[:-1], "2", *beside, "--out", out)
    status, told, err = vit_lens(*command)
    assert status == 0, err
    assert {one.name for one in out.iterdir()} == {
        "explanations.csv", "explanations.json", "features", "index.html", "scores.html", "settings.json", "shown",
        "steered", "strips",
    }  # fmt: skip
    assert len(list((out / "steered").rglob("*.png"))) == 3 * 3 + 1 and len(list((out / "strips").iterdir())) == 2 * 8
    found = Explanations.load(out / "explanations.json")
    assert found.kinds == ["dictionary", "untrained", "neurons"] and len(found.rows) == 18
    assert found.n_images == 208 == len(found.images) and "background" in found.images[0]
    assert "dictionary minus neurons: " in told and f"explanations: {out / 'explanations.json'}" in told
    assert "n = 6 units" in (out / "scores.html").read_text()
    index = (out / "index.html").read_text()
    own = [row for row in found.rows if row.kind == "dictionary"]
    first = max(own, key=lambda row: [-1 if one is None else one for one in (row.auc, row.score, row.localisation)])
    cards = re.findall(r'<article class="card" id="f(\d+)"', index)
    firing = [one for one in found.skipped if one.kind == "dictionary" and one.why != "never fires"]
    assert len(cards) == 6 + len(firing) and cards[0] == str(first.unit)
    assert first.text in (out / "features" / f"{first.unit}.html").read_text()
    check_strip(out, first.unit)
    before = (out / "explanations.json").read_bytes()
    assert vit_lens(*command)[0] == 0 and (out / "explanations.json").read_bytes() == before
    status, _, err = vit_lens(*command, "--protocol", "paper")
    assert status == 2 and "other settings" in err


def check_strip(out, feature):
    """Hold the pictures of a strip to such as are drawn anew, of the first image that explains or tests."""
    import vit_lens as vl
    from vit_lens.dictionaries import random_dictionary, steer

    model, topk = vl.HookedViT.from_pretrained("mini").requires_grad_(False), vl.Dictionary.from_pretrained("mini-topk")
    images = vl.explaining.AttributeOracle.of_world(260).pictures
    whole = vl.ActivationSource.of_model(model, images, "L5.resid_post", tokens="patches", seed=0)
    pixels = model.preprocess([images[whole.split(0.2)[0].inputs[0]]])
    drawer = vl.load_decoder("mini", encoder=model)
    random = random_dictionary(128, 1, k=1, seed=0).W_dec[0]
    for row, direction in enumerate((feature, random)):
        for column, dose in enumerate((0.0, 1.0, 2.0, 4.0)):
            with torch.no_grad():
                embeds = model.run_with_hooks(pixels, fwd_hooks=steer(model, topk, direction, dose))
            drawn = drawer.decode(embeds, negative=drawer.negative(model), settings=drawer.settings(seed=0))[0].numpy()
            found = np.asarray(Image.open(out / "strips" / f"{feature}_{row}_{column}.png"), dtype=int)
            assert np.abs(found - drawn).max() <= 1


def test_the_command_goes_on_where_an_endpoint_went_down(vit_lens, server, tmp_path):
    out = tmp_path / "out"
    ask = ["--explainer", "endpoint:m", "--base-url", server.url, "--beside", "none", "--out", out]
    command = ("dict", "explain", "mini-topk", *SMALL, "--units", "2", *ask)
    right, down = server.answer, (400, b'{"error": {"message": "gone"}}')
    server.answers = RIGHT
    server.answer = lambda kind: right(kind) if len(server.asked) <= 30 else down
    status, _, err = vit_lens(*command)
    assert status == 2 and "refuses with status 400" in err and not (out / "explanations.json").exists()
    assert len((out / "replies.jsonl").read_text().splitlines()) == 30
    server.answer = right
    status, _, err = vit_lens(*command)
    assert status == 0, err
    n = len((out / "replies.jsonl").read_text().splitlines())
    assert len(server.asked) == n + 1  # the one that was refused
    assert "red stars" in (out / "explanations.csv").read_text()


def test_photos_and_a_local_model(vit_lens, tmp_path):
    from vit_lens.explaining import AttributeOracle

    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(AttributeOracle.of_world(120, seed=1).pictures):
        picture.save(tmp_path / "photos" / f"{number:03d}.png")
    folder = judges.saved(tmp_path / "model", *judges.blip("t5"))
    out = tmp_path / "out"
    command = ("dict", "explain", "mini-topk", tmp_path / "photos", "--explainer", f"vlm:{folder}")
    command = (*command, "--units", "1", "--least", "10", "--beside", "none", "--out", out)
    refused, _, err = vit_lens(*command, "--scenes", "90")
    assert refused == 2 and "--scenes 90 would have no effect: images were given" in err
    status, told, err = vit_lens(*command)
    assert status == 0 or "no words; take another model" in err, err
    if status == 0:
        assert "vlm:model" in told and "000.png" in (out / "explanations.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini-topk", "--feature", "512"], "no unit 512 of dictionary: there are 512, counted from 0; nearest: '511'"),
        (["mini-topk", "--explainer", "oracl"], "expected oracle, vlm:DIR or endpoint:MODEL; nearest: 'oracle'"),
        (["mini-topk", "--explainer", "vlm:"], "vlm:: expected oracle, vlm:DIR"),
        (["mini-topk", "--base-url", "http://x"], "--base-url would have no effect"),
        (["mini-topk", "PHOTO"], "--explainer oracle knows the scenes of the embedded world alone"),
        (["mini-sd-topk"], "of a text encoder, vit_lens/mini-sd, whose inputs are words"),
        (["mini-topkk"], "mini-topk"),
        (["mini-topk", "--beside", "neuron"], "--beside neuron: nearest: 'neurons'"),
        (["mini-topk", "--beside", "none", "--beside", "PCA"], "--beside none with other kinds"),
        (["mini-flux-topk", "--strips", "1", "--decoder", "none"], "--decoder none would have no effect"),
        (["mini-flux-topk", "--explainer", "vlm:nowhere"], "nowhere"),
        (["mini-topk", "--strips", "2", "--decoder", "nowhere"], "nowhere"),
        (["mini-topk", "--decoder", "nowhere"], "--decoder nowhere would have no effect with --strips 0"),
    ],
)
def test_wrong_input_leaves_nothing(vit_lens, tmp_path, arguments, message):
    judges.picture().save(tmp_path / "photo.png")
    given = [tmp_path / "photo.png" if one == "PHOTO" else one for one in arguments]
    if arguments[-1] == "vlm:":
        given[-1] = "vlm:"
    status, _, err = vit_lens("dict", "explain", *SMALL, *given, "--out", tmp_path / "out")
    assert status == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "out").exists()


def test_neurons_that_there_are_not_are_said_or_refused(vit_lens, tmp_path):
    from vit_lens.dictionaries import random_dictionary

    rows = random_dictionary(128, 60, k=5, site="hook_embed")
    rows = replace(rows, origin=replace(rows.origin, tokens="patches"))
    given = ("dict", "explain", rows.save(tmp_path / "embed.safetensors"), *SMALL, "--units", "2")
    status, _, err = vit_lens(*given, "--beside", "neurons", "--out", tmp_path / "refused")
    assert status == 2 and "hook_embed is in no block with an MLP; leave it out" in err, err
    assert not (tmp_path / "refused").exists()
    status, out, err = vit_lens(*given, "--out", tmp_path / "out")
    assert status == 0 and "neurons are left out" in err and "minus untrained" in out and "minus neurons" not in out, (
        err
    )


def test_examples_are_those_of_the_dictionary(vit):
    """What explained units fire on, held to examples that are read from the model anew."""
    from vit_lens.dictionaries import ActivationSource, feature_examples
    from vit_lens.explaining import Units, unit_examples

    found = tiny.make(origin=tiny_origin(), n=23, k=3)
    pixels = torch.randn(19, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    images = [Image.new("RGB", (200, 150), (k, 0, 0)) for k in range(19)]
    units = Units.of_dictionary(found, ActivationSource.of_model(vit, pixels, "L1.resid_post", tokens="patches"))
    own = unit_examples(units, found, images, [4, 0, 17], grid=(2, 2), prompts=[f"prompt {k}" for k in range(19)])
    read = feature_examples(found, vit, pixels, [4, 0, 17])
    assert own.content == read.content and own.n_firing == read.n_firing
    torch.testing.assert_close(own.frequency, read.frequency)
    for some, others in zip(own.bands, read.bands, strict=True):
        for band, other in zip(some, others, strict=True):
            assert band.start == other.start
            assert [one.input for one in band.examples] == [one.input for one in other.examples]
            for one, slow in zip(band.examples, other.examples, strict=True):
                torch.testing.assert_close(own.on_grid(one), read.on_grid(slow).float())
                assert one.activation == pytest.approx(slow.activation, rel=1e-6)
    shown = {one.input for bands in own.bands for band in bands for one in band.examples}
    assert set(own.pictures) == shown and all(max(one.size) == 128 for one in own.pictures.values())
    assert own.prompts == {index: f"prompt {index}" for index in shown}
    with pytest.raises(ExplanationError, match="and 18 images were given; expected the same ones"):
        unit_examples(units, found, images[1:], [4], grid=(2, 2))


def tiny_origin():
    from vit_lens.dictionaries import Origin

    return Origin(site="blocks.1.hook_resid_post", tokens="patches")


def test_pages_go_without_strips_where_no_decoder_fits(vit, capsys):
    from vit_lens.cli.explaining_inputs import Given
    from vit_lens.cli.feature_pages import draws_of
    from vit_lens.errors import VitLensError

    given = Given(model=vit, whole=None, mlp=None, shown=[], names=[], oracle=None)
    assert draws_of(given, "mini") is None  # nobody may have asked for it
    assert "no steering strips: " in capsys.readouterr().err
    assert draws_of(given, "none") is None and not capsys.readouterr().err
    with pytest.raises(VitLensError):
        draws_of(given, "mini-ip")


def test_captions_that_there_are_not_end(monkeypatch):
    from types import SimpleNamespace

    from vit_lens.cli.dictionary_inputs import Reads, captions
    from vit_lens.errors import VitLensError
    from vit_lens.mini import still_life

    few = [SimpleNamespace(text=text) for text in ("a ring", "a star", "a cross")]
    monkeypatch.setattr(still_life, "sample", lambda n, generator, _: generator.choice(few, n).tolist())
    asked = Reads(model="mini-flux")
    assert sorted(captions(asked, None, 3, once=True)) == ["a cross", "a ring", "a star"]
    with pytest.raises(VitLensError, match="4 captions that all differ were asked for, and mini-flux's world has 3"):
        captions(asked, None, 4, once=True)
