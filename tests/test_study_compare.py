"""Study compare: what is planted and every method against slow ways by hand, planted answers, and end to end."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny_pipelines
import torch

from vit_lens.errors import LensError, StudyError
from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.studies.asked import Asked, ask_of_world

EXACT = dict(rtol=0, atol=1e-9)
N = 4


def setup_of(out, dtype=torch.float32, **changes):
    from vit_lens.decoders import PromptEncoder, TextDecoder
    from vit_lens.studies.scene_judges import ExactSceneJudge
    from vit_lens.studies.text_setup import TextSetup

    decoder = TextDecoder.from_pretrained("mini-sd")
    given = {"lexicon": Lexicon(0), "settings": decoder.settings(steps=2), "noise": (3, 1), "seed": 5} | changes
    reader = PromptEncoder.from_pretrained("mini-sd", dtype=dtype)
    return TextSetup(reader=reader, decoder=decoder, judge=ExactSceneJudge(), out=out, **given)


@pytest.fixture(scope="module")
def asked():
    return ask_of_world({"single": N}, Lexicon(0), seed=7)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, asked):
    """The embedded model's encoder in float64, with its words erased."""
    from vit_lens.studies.compare import Erased

    return Erased(setup=setup_of(tmp_path_factory.mktemp("wide"), torch.float64), asked=asked, n_fit=70)


def stock(reader, ids, word_ids=None, **options):
    """A run of the stock encoder by its own account; words of a class are replaced behind its token embedding."""
    module = copy.deepcopy(reader.encoders["text_encoder"])
    text = getattr(module, "text_model", module)
    table = text.embeddings.token_embedding.weight

    def put(module, args, output):
        for row, tokens in enumerate(ids.tolist()):
            for place, token in enumerate(tokens):
                if token in word_ids.tolist():
                    output[row, place] = sum(table[one] for one in word_ids.tolist()) / len(word_ids)
        return output

    if word_ids is not None:
        text.embeddings.token_embedding.register_forward_hook(put)
    if options.get("output_attentions"):
        module.set_attn_implementation("eager")
    with torch.no_grad():
        return module(ids, output_hidden_states=True, **options), text.final_layer_norm, table.detach()


def streams(erased, **options):
    """The stock runs: clean, then without the word of each class."""
    return [stock(erased.setup.reader, erased.run.ids["text_encoder"], one, **options) for one in (None, *erased.ids)]


# ---- what is planted


def test_erased_states_are_those_of_the_stock_encoder_with_the_mean_of_the_class(wide):
    found = [torch.stack(list(one.hidden_states), 1) for one, _, _ in streams(wide)]
    assert wide.states.shape == (4, N, 9, 20, 128)
    for state, expected in zip(wide.states, found, strict=True):
        assert torch.allclose(state, expected, **EXACT)
    assert not torch.allclose(wide.states[0], wide.states[1], atol=0.1)
    for i, one in enumerate(wide.asked):
        said = still_life.object_of(one.sentence.scene.objects[0])
        pieces = wide.tower.to_str_tokens(one.prompt)
        assert tuple(pieces[place].removesuffix("</w>") for place in wide.places[i].tolist()) == said
        assert torch.equal(wide.end_states[2, i, 5], wide.states[2, i, 5, int(wide.ends[i])])


@pytest.mark.parametrize("word", range(3))
def test_nothing_of_an_erased_state_depends_on_which_word_of_the_class_it_was(wide, word):
    """To the last bit, at every position and layer; the clean state does."""
    from vit_lens import TextRun
    from vit_lens.studies.compare.erased import CLASSES
    from vit_lens.studies.compare.erasing import ErasedLens, erase

    words = list(CLASSES.values())[word]
    rest = ["red", "striped", "cross"]
    prompts = [" ".join(["a", *rest[:word], one, *rest[word + 1 :]]) for one in words]
    runs = [TextRun.of(wide.setup.reader, [one, "a blue solid ring"]) for one in prompts]
    edited = [erase(run, "text_encoder", wide.ids[word]) for run in runs]
    lens = ErasedLens(words_erased=words)
    shown = [lens.read(run, ["L0.resid_pre", "resid_post"]).tokens for run in runs]
    for run, tokens in zip(edited, shown, strict=True):
        assert torch.equal(run.condition.tokens, edited[0].condition.tokens) and torch.equal(tokens, shown[0])
        for layer in range(9):
            assert torch.equal(run.residual("text_encoder", layer), edited[0].residual("text_encoder", layer))
    assert not torch.equal(runs[0].residual("text_encoder", 8), runs[1].residual("text_encoder", 8))


def test_where_a_word_is_there_and_what_stands_in_each_item(wide):
    assert wide.points == (0, 3, 6) and wide.last == 8
    said = np.random.default_rng(0).normal(size=(4, N, 6, 9))
    spread = wide.spread(said)
    for number, since in enumerate((0, 3, 6, None)):
        for layer in range(9):
            is_there = since is None or layer < since
            assert wide.present[number, layer] == is_there
            for word in range(3):
                expected = said[0 if is_there else 1 + word, :, :, layer]
                assert np.array_equal(spread[:, number, word, :, layer], expected)
    own = [[words.index(one) for words, one in zip((list(still_life.COLOURS), still_life.TEXTURES, still_life.SHAPES),
            still_life.object_of(asked.sentence.scene.objects[0]), strict=True)] for asked in wide.asked]  # fmt: skip
    assert wide.own.tolist() == own and not (wide.other == np.arange(N)).any()
    for i in range(N):
        assert wide.questions[i].tolist() == own[i] + own[wide.other[i]]
    weights = spread[:, :, :, :3]
    both = wide.at_word(weights)
    for i, word in np.ndindex(N, 3):
        expected = weights[i, :, :, word] * (own[i][word] == own[wide.other[i]][word])
        assert np.array_equal(both[i, :, :, word], weights[i, :, :, word])
        assert np.array_equal(both[i, :, :, 3 + word], expected)


def test_words_are_erased_from_other_encoders_too_and_are_one_token():
    from vit_lens import TextDiffusionLens, TextRun
    from vit_lens.decoders import PromptEncoder
    from vit_lens.studies.compare.erasing import ErasedLens, class_ids, erase, place_of

    pipe = tiny_pipelines.make("sd1")
    pipe.text_encoder.double()
    reader = PromptEncoder(pipe)
    run, tower = TextRun.of(reader, ["a red star", "two blue red ring"]), reader.towers["text_encoder"]
    ids = class_ids(tower, ("red", "blue"))
    found = erase(run, "text_encoder", ids)
    expected = torch.stack(list(stock(reader, run.ids["text_encoder"], ids)[0].hidden_states))
    for layer, own in enumerate(expected):
        assert torch.allclose(found.residual("text_encoder", layer), own, **EXACT)
    lens = ErasedLens(words_erased=("red", "blue"))
    assert torch.equal(lens.read(run, "resid_post").tokens[:, -1], found.condition.tokens)
    plain = TextDiffusionLens().read(run, "resid_post").tokens
    assert torch.allclose(ErasedLens().read(run, "resid_post").tokens, plain, **EXACT)
    assert lens.describe().settings["words_erased"] == "red, blue" and ErasedLens().describe().settings != (
        lens.describe().settings
    )
    with pytest.raises(LensError, match="no hook functions"):
        lens.hooks(run, "L0.resid_post")
    with pytest.raises(StudyError, match="'two blue red ring' has 2 words of a class of 2"):
        place_of(run, "text_encoder", ids)
    with pytest.raises(StudyError, match="'redstar' is 3 tokens"):
        class_ids(tower, ("red", "redstar"))


# ---- methods, each by hand


def by_item(erased, of):
    """Scores item by item: ``of(run, prompt, class, word, layer)`` of the state that stands there."""
    found = np.zeros((N, 4, 3, 6, 9))
    for i, number, word, question, layer in np.ndindex(*found.shape):
        state = 0 if erased.present[number, layer] else 1 + word
        said = of(state, i, question % 3, int(erased.questions[i, question]), layer)
        found[i, number, word, question, layer] = said
    return found


def test_the_logit_lens_by_hand(wide):
    from vit_lens.studies.compare import METHODS

    runs = streams(wide)

    def of(state, i, which, word, layer):
        found, norm, table = runs[state]
        with torch.no_grad():
            logits = norm(found.hidden_states[layer][i, int(wide.ends[i])]) @ table[wide.ids[which]].T
        return (logits[word] - logits.exp().sum().log()).item()

    assert np.allclose(METHODS["logit lens"].score(wide), by_item(wide, of), **EXACT)


def test_rollout_by_a_loop_over_the_stock_encoders_attention(wide):
    """Where a word is erased from a layer on, blocks before it have the clean run's patterns."""
    from vit_lens.studies.compare import METHODS

    runs = [one.attentions for one, _, _ in streams(wide, output_attentions=True)]
    found = METHODS["attention rollout"].score(wide)
    for i, number, word in np.ndindex(N, 4, 3):
        since, weight = (0, 3, 6, 99)[number], np.eye(20)
        for layer in range(9):
            for asked in range(3):
                value = weight[int(wide.ends[i]), int(wide.places[i, asked])]
                assert found[i, number, word, asked, layer] == pytest.approx(
                    value, abs=1e-7
                )  # theirs is float32 inside
            if layer == 8:
                continue
            pattern = runs[0 if layer < since else 1 + word][layer][i].numpy()
            step = np.zeros((20, 20))
            for query in range(20):
                row = [np.mean([head[query, key] for head in pattern]) + (key == query) for key in range(20)]
                step[query] = np.array(row) / sum(row)
            weight = step @ weight
    assert (found[..., 0] == 0).all() and (found[:, -1, :, :3, 8] > 0).all()


def test_rollout_of_random_patterns_is_the_product_of_matrices():
    from vit_lens.studies.compare.rollout import rollout

    patterns = torch.rand(3, 4, 5, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril()
    found = rollout(patterns)
    for row in range(3):
        weight = torch.eye(7, dtype=torch.float64)
        for block in range(4):
            assert torch.allclose(found[row, block], weight, **EXACT)
            step = sum(patterns[row, block]) / 5 + torch.eye(7)
            weight = torch.diag(1 / step.sum(1)) @ step @ weight
        assert torch.allclose(found[row, 4], weight, **EXACT)


def test_probes_are_ridge_regressions_on_other_sentences_and_agree_at_the_last_layer(wide):
    from vit_lens.studies.compare import METHODS
    from vit_lens.studies.compare.probes import Fitted
    from vit_lens.studies.whose import Translators, ridge_classes

    others = Fitted(wide)
    texts = [one.text for one in others.sentences]
    assert len(texts) == 70 and not set(texts) & {one.prompt for one in wide.asked}
    ids = wide.tower.to_tokens(texts, pad_to=20)
    x = torch.stack(list(stock(wide.setup.reader, ids)[0].hidden_states))
    labels = still_life.codes([one.scene for one in others.sentences])[:, 1:4]
    runs = [torch.stack(list(one.hidden_states), 1) for one, _, _ in streams(wide)]
    ends = [row.index(38) for row in ids.tolist()]
    read = {
        "probe, end of the text": (x[:, range(70), ends], lambda state, i: state[int(wide.ends[i])]),
        "probe, mean of all positions": (x.mean(2), lambda state, i: state.mean(0)),
    }
    for name, (features, of_state) in read.items():
        fits = [[ridge_classes(own, torch.from_numpy(labels[:, k]), 0.01) for own in features] for k in range(3)]

        def of(state, i, which, word, layer, fits=fits, of_state=of_state):
            weight, bias = fits[which][layer]
            return (of_state(runs[state][i, layer], i) @ weight + bias)[word].item()

        assert np.allclose(METHODS[name].score(wide), by_item(wide, of), rtol=0, atol=1e-7)
    tuned, maps = METHODS["tuned lens"].score(wide), Translators.fit(wide.setup.reader, texts)
    fits = [ridge_classes(x[8, range(70), ends], torch.from_numpy(labels[:, k]), 0.01) for k in range(3)]

    def moved(state, i, which, word, layer):
        weight, bias = fits[which]
        return (maps(layer, runs[state][i, layer, int(wide.ends[i])]) @ weight + bias)[word].item()

    assert np.allclose(tuned, by_item(wide, moved), rtol=0, atol=1e-6)
    assert np.allclose(tuned[..., 8], METHODS["probe, end of the text"].score(wide)[..., 8], **EXACT)


def test_activation_maximisation_climbs_as_one_row_by_hand_does_and_finds_the_word(wide):
    """Whole prompts one at a time through the stock encoder, against batches that are cut behind the end."""
    from vit_lens.studies.compare.maximisation import ActivationMaximisation

    method = ActivationMaximisation(steps=6, rate=0.3)
    found = method.found(wide)
    assert found.shape == (4, N, 9, 3, 128)
    module = wide.setup.reader.encoders["text_encoder"]
    table = getattr(module, "text_model", module).embeddings.token_embedding.weight.detach()
    ids = wide.run.ids["text_encoder"]
    for run, i, layer, word in ((0, 0, 2, 0), (1, 1, 8, 2), (3, 2, 1, 2), (2, 3, 5, 1)):
        words, end, place = table[wide.ids[word]], int(wide.ends[i]), int(wide.places[i, word])
        free = words.mean(0).clone().requires_grad_(True)
        adam = torch.optim.Adam([free], lr=0.3 * float((words - words.mean(0)).square().mean().sqrt()))
        given = table[ids[i]].clone()
        handle = None
        for _ in range(6):

            def put(module, args, output, given=given, place=place, free=free):
                return torch.cat([given[:place], free[None], given[place + 1 :]])[None]

            layer_of = getattr(module, "text_model", module).embeddings.token_embedding
            handle = layer_of.register_forward_hook(put)
            with torch.enable_grad():
                state = module(ids[i : i + 1], output_hidden_states=True).hidden_states[layer][0, end]
                like = torch.nn.functional.cosine_similarity(state, wide.end_states[run, i, layer], dim=0)
                adam.zero_grad()
                (-like).backward()
            if like > 1 - 1e-6:  # a word that was erased is where the climb starts
                free.grad.zero_()
            handle.remove()
            adam.step()
        assert torch.allclose(found[run, i, layer, word], free.detach(), **EXACT)
    module.zero_grad(set_to_none=True)
    assert torch.allclose(found[:, :, 0, 1], table[wide.ids[1]].mean(0), **EXACT)  # nothing to climb
    scores = ActivationMaximisation(steps=12).score(wide)
    (file,) = wide.setup.out.glob("maximised-*.safetensors")
    before = file.stat().st_mtime_ns
    assert np.array_equal(ActivationMaximisation(steps=12).score(wide), scores) and file.stat().st_mtime_ns == before
    assert (scores <= 0).all() and np.ptp(scores[..., 0], axis=(1, 2)).max() < 1e-12
    held = method.found(wide)[0]  # of whole states
    for i, word in np.ndindex(N, 3):
        like = torch.nn.functional.cosine_similarity(held[i, 4, word], table[wide.ids[word]], dim=-1)
        assert int(like.argmax()) == wide.own[i, word]


def test_cross_attention_is_the_word_s_share_of_the_maps_and_is_kept(tmp_path, asked):
    from vit_lens.decoders import seeded
    from vit_lens.diffusion import maps_of
    from vit_lens.studies.compare import METHODS, Erased
    from vit_lens.studies.compare.erased import CLASSES
    from vit_lens.studies.compare.erasing import ErasedLens

    setup = setup_of(tmp_path, batch_size=9)
    erased = Erased(setup=setup, asked=asked[:2])
    found = METHODS["cross-attention"].score(erased)
    files = {one: one.stat().st_mtime_ns for one in tmp_path.glob("masses-*.safetensors")}
    assert len(files) == 4 and np.array_equal(METHODS["cross-attention"].score(erased), found)
    assert {one: one.stat().st_mtime_ns for one in tmp_path.iterdir()} == files
    settings = seeded(setup.settings, 3)  # the first noise
    for run, words in enumerate(((), *CLASSES.values())):
        for i in range(2):
            read = ErasedLens(words_erased=words).read(erased.run, ["L0.resid_pre", "resid_post"])
            maps = maps_of(setup.decoder, read[i], settings, negative=setup.reader.negative(), batch_size=9).maps
            share = maps.sum((-2, -1)) / maps.sum((-3, -2, -1))[:, None]
            for asked_word in range(3):
                own = share[:, int(erased.places[i, asked_word])].numpy()
                at = found[i, 3, 0, asked_word] if run == 0 else found[i, 0, run - 1, asked_word]
                assert np.allclose(at, own, rtol=0, atol=1e-4)


def test_pictures_are_judged_word_by_word(tmp_path, asked):
    """Against the sweep's own answers to whoever looks at each record."""
    from vit_lens.studies.compare import METHODS, Erased, ErasedLens
    from vit_lens.studies.compare.erased import CLASSES
    from vit_lens.studies.compare.pictures import shown_pictures

    setup = setup_of(tmp_path)
    erased = Erased(setup=setup, asked=asked[:3])
    found = METHODS["diffusion lens"].score(erased)
    for run, (name, words) in enumerate({"nothing": (), **CLASSES}.items()):
        record = setup.drawn(f"erased-{name.split()[0]}", asked[:3], lens=ErasedLens(words_erased=words))
        expected = np.zeros((3, 6, 9))
        for row, i, site in zip(*(record.table[one] for one in ("row", "input", "site")), strict=True):
            layer = 0 if site == "L0.resid_pre" else int(site[1]) + 1
            (scene,) = setup.judge.scenes(setup.judge.look(np.asarray(record.picture(int(row)))[None]))
            seen = still_life.object_of(scene.objects[0])
            for word, question in np.ndindex(3, 2):
                who = i if question == 0 else erased.other[i]
                said = still_life.object_of(asked[who].sentence.scene.objects[0])
                expected[i, 3 * question + word, layer] += (seen[word] == said[word]) / 2
        assert np.array_equal(found[:, 3, 0] if run == 0 else found[:, 0, run - 1], expected)
    shown = shown_pictures(setup, asked[:3])
    assert list(shown) == ["nothing erased", "colour erased", "texture erased", "shape erased"]
    assert all(len(some) == 9 and some[0].size == (32, 32) for some in shown.values())


# ---- planted answers


def planted(kind, n=25, n_layers=5, seed=0):
    """Scores of a method that knows the truth, nothing, or only that something is missing."""
    generator = np.random.default_rng(seed)
    present = np.arange(n_layers)[None] < np.array([0, 2, 3, n_layers + 1])[:, None]
    scores = generator.normal(size=(n, 4, 3, 6, n_layers))
    there = np.zeros(scores.shape, dtype=bool)
    for word, question in np.ndindex(3, 6):
        is_erased = word == question if kind == "knows" else True
        there[:, :, word, question] = (present if is_erased else present * 0 + 1) * (question < 3 or kind != "knows")
    return scores + 100 * there * (kind != "blind"), present


def test_areas_of_methods_that_know_and_of_one_that_is_blind():
    from vit_lens.studies.compare.scoring import KINDS, OTHER_PROMPT, OTHER_WORD, OWN, mean_area, shuffled_areas

    knows, present = planted("knows")
    assert mean_area(knows, present) == 1.0
    for kind in (OTHER_PROMPT, OTHER_WORD):
        assert mean_area(knows, present, kind) == pytest.approx(0.5, abs=0.05)
    blind, _ = planted("blind", n=80)
    missing, _ = planted("something is missing")
    for kind in KINDS:
        assert mean_area(blind, present, kind) == pytest.approx(0.5, abs=0.04)
        assert mean_area(missing, present, kind) == 1.0
        assert mean_area(blind * 0, present, kind) == 0.5
    assert mean_area(-knows, present) == 0.0 and mean_area(knows, present, OWN, 2) == 1.0
    null = shuffled_areas(knows, present, np.random.default_rng(1), 40)
    assert np.mean(null) == pytest.approx(0.5, abs=0.02) and max(null) < 0.7


def test_an_area_is_the_share_of_pairs_in_order_counted_one_by_one():
    from vit_lens.studies.compare.scoring import KINDS, areas, mean_area

    scores, present = planted("blind", n=4, n_layers=3)
    scores = np.round(scores)  # ties
    for number, kind in enumerate(KINDS):
        found = areas(scores, present[None], kind)
        for word, layer in np.ndindex(3, 3):
            shares = []
            for erased in [word] if number < 2 else [one for one in range(3) if one != word]:
                cells = [(scores[i, k, erased, word + 3 * (number == 1), layer], present[k, layer])
                         for i in range(4) for k in range(4)]  # fmt: skip
                pairs = [(a, b) for a, one in cells for b, two in cells if one and not two]
                shares.append(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
            assert found[word, layer] == pytest.approx(np.mean(shares), abs=1e-12)
        assert mean_area(scores, present, kind) == pytest.approx(found[:, 1:].mean())


# ---- end to end


@dataclass(frozen=True)
class Oracle:
    """A method that is told what is planted."""

    name: str = "oracle"
    level: str = "embedding"
    words: str = "the truth"
    odd: bool = False

    def score(self, erased):
        if self.odd:
            return np.full((1, 4, 3, 6, 9), np.nan)
        found = np.ones((len(erased.asked), 4, 3, 6, 9))
        for word in range(3):
            found[:, :, word, word] = erased.present
            found[:, :, word, 3:] = 0
        return found

    def cost(self, erased):
        return "nothing"


def test_a_method_of_one_s_own_that_knows_the_truth_has_1_and_its_placebos_half(wide):
    from vit_lens.studies.compare import HEADLINES, Method, compare_study

    assert isinstance(Oracle(), Method)
    result = compare_study(wide.setup, wide.asked, methods=[Oracle()], n_draws=8)
    score = result.score(HEADLINES[0], "oracle", "embedding")
    assert (score.estimate.value, score.n, score.unit) == (1.0, N, "prompts") and set(score.controls.values()) == {0.5}
    curves = result.frame("curves")
    assert (curves[["own word", "colour", "texture", "shape"]] == 1).all(axis=None)
    assert (curves[["another prompt's word", "own word, another word erased"]] == 0.5).all(axis=None)
    assert (result.frame("items")["share of erased states below"] == 1).all()
    with pytest.raises(StudyError, match=r"method 'oracle' gave scores of shape \(1, 4, 3, 6, 9\); expected \(4, 4"):
        compare_study(wide.setup, wide.asked, methods=[Oracle(odd=True)])


def test_wrong_prompts_and_methods_are_refused(wide):
    from vit_lens.studies.compare import Erased
    from vit_lens.studies.compare.methods import METHODS, chosen_methods

    setup, known = wide.setup, list(wide.asked)
    table = [Asked(prompt="a can", kind="x", questions={"object 1": ""})] * 2
    for some in (table, [*known, table[0]]):
        with pytest.raises(StudyError, match="a table of prompts does not say the classes"):
            Erased(setup=setup, asked=some)
    with pytest.raises(StudyError, match="of the embedded world"):
        Erased(setup=replace(setup, lexicon=None), asked=known)
    for kind in ("pair, head first", "common name"):
        with pytest.raises(StudyError, match="expected one object with colour, texture and shape"):
            Erased(setup=setup, asked=[known[0], *ask_of_world({kind: 1}, Lexicon(0), seed=0)])
    for some in (known[:1], [known[0], known[0]]):
        with pytest.raises(StudyError, match="two or more different ones"):
            Erased(setup=setup, asked=some)
    with pytest.raises(StudyError, match="nearest: 'logit lens'"):
        chosen_methods(["logit lense"])
    with pytest.raises(StudyError, match="no method 'x'"):
        chosen_methods(skip=["x"])
    with pytest.raises(StudyError, match="give each once"):
        chosen_methods(["logit lens", "logit lens"])
    with pytest.raises(StudyError, match="no method is left"):
        chosen_methods(["logit lens"], ["logit lens"])
    assert [one.name for one in chosen_methods()] == list(METHODS)
    assert [one.name for one in chosen_methods(skip=["tuned lens"])] == [one for one in METHODS if one != "tuned lens"]


def test_the_study_goes_on_and_pools(tmp_path, asked):
    from vit_lens.studies import load_result, pool
    from vit_lens.studies.compare import HEADLINES, METHODS, compare_study
    from vit_lens.studies.headlines import headlines

    setup = setup_of(tmp_path, noise=(0,))
    result = compare_study(setup, asked[:3], n_fit=40, n_draws=6, command="it")
    result.save(tmp_path)
    assert load_result(tmp_path).scores == result.scores
    found = {one.reading: one for one in result.scores if one.measure == HEADLINES[0]}
    assert list(found) == list(METHODS) and all(one.estimate.value is not None for one in found.values())
    assert found["probe, mean of all positions"].estimate.value > 0.9
    kept = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*") if one.suffix in (".safetensors", ".zip")}
    again = compare_study(setup, asked[:3], n_fit=40, n_draws=6, command="it")
    assert kept and again.scores == result.scores
    assert {one: one.stat().st_mtime_ns for one in kept} == kept
    pooled = pool([result, replace(result, setup={**result.setup, "fingerprint": "another"})])
    assert headlines(pooled) == list(HEADLINES)
    assert pooled.score(HEADLINES[0], "logit lens", "embedding").estimate.value == pytest.approx(
        found["logit lens"].estimate.value
    )
    assert set(result.frame("methods")["method"]) == set(METHODS) and result.frame("curves")["n"].eq(3).all()


def test_the_command_runs_and_draws(vit_lens, tmp_path):
    out = tmp_path / "compare"
    few = ("study", "compare", "--n", 3, "--steps", 2, "--decoder-seed", 0, "--n-fit", 30, "--out", out)
    status, output, error = vit_lens(*few, "--method", "diffusion lens", "--method", "logit lens")
    assert status == 0 and "study compare: " in output and "  logit lens, embedding: " in output, error
    assert "n = 3 prompts" in (out / "areas.html").read_text() and (out / "result.json").is_file()
    sheet = (out / "prompt.html").read_text()
    assert sheet.count('"type":"image"') >= 36 and "colour<br>erased" in sheet.replace("\\u003c", "<").replace(
        "\\u003e", ">"
    )
    status, output, error = vit_lens(*few, "--method", "logit lens", "--skip", "diffusion lens")
    assert status == 0 and "diffusion lens" not in output, error
    status, output, error = vit_lens(*few, "--method", "logits")
    assert status != 0 and "no method 'logits'" in error and not output
    table = tmp_path / "own.csv"
    table.write_text("prompt,kind,part,question\na red star,x,star,Is there a star?\na red ring,x,star,Is it a star?\n")
    status, output, error = vit_lens(*few, "--prompt-table", table)
    assert status != 0 and "a table of prompts does not say the classes" in error
