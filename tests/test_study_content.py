"""The content study: effects against hooked runs, scores against slow ones, nulls that can tell, wrong input."""

import csv

import numpy as np
import pytest
import torch
from scipy import stats

from vit_lens.errors import StudyError, TextError

CAPTIONS = [f"{name}{value}" for name in "abcd" for value in (0, 1, 2)]


def bank(model, seed=0, captions=CAPTIONS, dtype=torch.float64):
    from vit_lens import TextBank

    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(captions), model.cfg.d_embed, generator=generator, dtype=torch.float64).to(dtype)
    return TextBank(
        captions=tuple(captions), embeds=embeds, logit_scale=9.0, logit_bias=None, encoder_id=model.encoder_id
    )


def make_pairs(images, n_bases, names="abcd"):
    """Every base has a partner for every attribute; captions differ from base to base."""
    from vit_lens.studies.content.pairs import AttributePairs

    rows = [(base, name) for base in range(n_bases) for name in names]
    return AttributePairs(
        images=images, base=tuple(base for base, _ in rows), partner=tuple(range(n_bases, n_bases + len(rows))),
        attribute=tuple(name for _, name in rows), caption=tuple(f"{name}{base % 3}" for base, name in rows),
        partner_caption=tuple(f"{name}{(base + 1) % 3}" for base, name in rows),
    )  # fmt: skip


def random_pixels(model, n, seed=0):
    return torch.randn(n, 3, *model.cfg.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- effects, against hooked runs of one pair and one site ----------------------------------------------------


def contrast(texts, embed, pairs, pair):
    cosines = [
        torch.nn.functional.cosine_similarity(embed[0], texts.embeds[texts.captions.index(side[pair])], dim=0)
        for side in (pairs.partner_caption, pairs.caption)
    ]
    return texts.logit_scale * float(cosines[0] - cosines[1])


def from_partner(cache, site):
    def put(act, hook):
        out = act.clone()
        if site.head is None:
            return cache[site.hook_name]
        out[:, :, site.head] = cache[site.hook_name][:, :, site.head]
        return out

    return site.hook_name, put


def behind(model, site):
    """Every output that is written after the site, in order."""
    blocks = [f"blocks.{layer}.hook_{part}" for layer in range(model.cfg.n_layers) for part in ("attn_out", "mlp_out")]
    pool = [name for name in ("attn_pool.hook_attn_out", "attn_pool.hook_mlp_out") if name in model.hook_dict]
    if site.is_pool:
        return pool[1:] if site.kind != "pool_mlp" else []
    own = 2 * site.layer + (site.kind == "mlp")
    return blocks[own + 1 :]


def check_effects(model, sites):
    from vit_lens import Site
    from vit_lens.studies.content.effects import direct_effects, total_effects

    pairs = make_pairs(range(10), 2)
    pixels, texts, sites = random_pixels(model, 10), bank(model), Site.resolve(sites, model.cfg)
    total, direct = (f(model, pixels, pairs, texts, sites) for f in (total_effects, direct_effects))
    assert total.shape == direct.shape == (8, len(sites))
    for pair in (0, 3, 6):
        base, partner = (pixels[[side[pair]]] for side in (pairs.base, pairs.partner))
        clean, own = model.run_with_cache(base)
        cache = model.run_with_cache(partner)[1]
        start = contrast(texts, clean, pairs, pair)
        for column, site in enumerate(sites):
            hook = from_partner(cache, site)
            found = model.run_with_hooks(base, fwd_hooks=[hook])
            assert total[pair, column] == pytest.approx(contrast(texts, found, pairs, pair) - start, abs=1e-9)
            frozen = [(name, lambda act, hook, own=own: own[hook.name]) for name in behind(model, site)]
            found = model.run_with_hooks(base, fwd_hooks=[hook, *frozen])
            assert direct[pair, column] == pytest.approx(contrast(texts, found, pairs, pair) - start, abs=1e-9)


def test_effects_are_those_of_hooked_runs(vit, monkeypatch):
    from vit_lens.studies.content import effects as content_effects

    monkeypatch.setattr(content_effects, "_BATCH", 3)  # pairs go through in several batches
    check_effects(vit, ["heads", "mlp"])


def test_effects_with_other_readouts(readout_vit):
    check_effects(readout_vit[0], ["L0H1", "L2H2", "L1.mlp", "L2.mlp"])


def test_effects_with_attention_pooling(pooling_vit):
    pool = ["poolH1"] + (["pool.mlp"] if pooling_vit.cfg.attn_pool.d_mlp else [])
    check_effects(pooling_vit, ["L0H1", *pool, "L2.mlp"])


def test_caption_changes_read_each_pair_by_its_own_captions(vit):
    from vit_lens.studies.content.effects import caption_changes

    pairs, texts = make_pairs(range(10), 2), bank(vit)
    embeds = torch.randn(10, 3, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = caption_changes(texts, embeds, pairs)
    other = caption_changes(texts, embeds, pairs, shown=pairs.donors())
    assert pairs.donors() == (4, 5, 6, 7, 0, 1, 2, 3)
    for pair, donor in enumerate(pairs.donors()):
        for site in range(3):
            for got, look in ((found, pair), (other, donor)):
                one, two = (embeds[[side[look]], site] for side in (pairs.base, pairs.partner))
                expected = contrast(texts, two, pairs, pair) - contrast(texts, one, pairs, pair)
                assert got[pair, site] == pytest.approx(expected, abs=1e-9)


def test_donors_have_other_captions_where_there_are_any():
    pairs = make_pairs(range(20), 4)  # bases 0 and 3 have the same captions
    assert pairs.donors()[12:] == (4, 5, 6, 7) and pairs.donors()[:4] == (4, 5, 6, 7)


# ---- scores ---------------------------------------------------------------------------------------------------


def changes_of(table):
    """One pair for each base and attribute: [base site attribute]."""
    from vit_lens.studies.content.effects import Changes

    counts = np.ones((table.shape[0], table.shape[2]), dtype=np.int64)
    return Changes(sums=table.astype(float), counts=counts, full=np.ones(table.shape[2]))


def test_shares_are_means_over_pairs_in_units_of_the_full_change(vit):
    from vit_lens.studies.content.effects import Changes

    pairs = make_pairs(range(20), 4)
    table = np.random.default_rng(0).normal(size=(16, 5))
    full = np.array([2.0, -4.0, 8.0])
    found = Changes.of(table, pairs, ["a", "c", "d"], full)
    rows = np.array([0, 2, 2, 3])
    for index, name in enumerate(["a", "c", "d"]):
        places = [
            pair for base in rows for pair in range(16) if pairs.base[pair] == base and pairs.attribute[pair] == name
        ]
        assert np.allclose(found.shares(rows)[:, index], table[places].mean(0) / full[index])
    assert np.allclose(found.take([3, 1]).shares(), found.shares()[[3, 1]])


def test_bases_without_an_attribute_have_no_shares():
    from vit_lens.studies.content.effects import Changes

    counts = np.array([[1, 1], [1, 0]])
    found = Changes(sums=np.ones((2, 3, 2)), counts=counts, full=np.ones(2))
    assert found.shares(np.array([1, 1])) is None and found.shares(np.array([0, 1])) is not None


def test_cross_agreement_is_scipys_for_every_two_rows():
    from vit_lens.studies.content.agreement import cross_agreement
    from vit_lens.studies.statistics import within_rows

    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(4, 9)), generator.integers(0, 4, size=(4, 9)).astype(float)
    a[2] = 0.3
    found = cross_agreement(a, b)
    for i in (0, 1, 3):
        for j in range(4):
            assert found[i, j] == pytest.approx(stats.spearmanr(a[i], b[j])[0], abs=1e-12)
    assert np.isnan(found[2]).all()
    assert np.allclose(np.diagonal(found), within_rows(a, b), equal_nan=True)


def scores_of(shown, caused, **options):
    from vit_lens.studies.content.agreement import Reading, reading_scores

    reading = Reading(
        spec="lens", level="embedding", changes=changes_of(shown), causal={"total effect": changes_of(caused)},
        top=[0, 1, 2], **options,
    )  # fmt: skip
    return {score.measure: score for score in reading_scores(reading, seed=0, n_shuffles=50)}


AGREEMENT, EXCESS = "agreement within sites, total effect", "excess over shuffled sites within sites, total effect"


def test_a_lens_that_shows_what_sites_do_agrees_whatever_their_size():
    generator = np.random.default_rng(2)
    caused = generator.normal(size=(1, 8, 10)) + 0.1 * generator.normal(size=(7, 8, 10))
    found = scores_of(caused * generator.uniform(0.01, 100, size=(1, 8, 1)), caused)
    assert found[AGREEMENT].estimate.value == pytest.approx(1)
    cross = stats.spearmanr(caused.mean(0), axis=1)[0]
    assert found[EXCESS].estimate.value == pytest.approx(1 - cross[~np.eye(8, dtype=bool)].mean())
    assert found[EXCESS].estimate.low > 0.5
    assert abs(found[AGREEMENT].nulls["shuffled sites"].mean) < 0.25


def test_what_all_sites_share_is_no_excess():
    """A lens that shows the same of every site agrees, if all sites do much the same, and says nothing of any."""
    generator = np.random.default_rng(3)
    shared = generator.normal(size=(1, 1, 10))
    caused = shared + 0.2 * generator.normal(size=(1, 8, 10)) + 0.05 * generator.normal(size=(7, 8, 10))
    found = scores_of(np.broadcast_to(shared, caused.shape), caused)
    assert found[AGREEMENT].estimate.value > 0.7
    assert found[AGREEMENT].nulls["shuffled sites"].mean > 0.7
    assert found[EXCESS].estimate.value == pytest.approx(0, abs=1e-12)


def test_a_lens_of_noise_has_neither_agreement_nor_excess():
    generator = np.random.default_rng(4)
    values = []
    for _ in range(20):
        shown, caused = generator.normal(size=(2, 6, 12, 10))
        values.append([scores_of(shown, caused)[name].estimate.value for name in (AGREEMENT, EXCESS)])
    assert np.abs(np.mean(values, axis=0)).max() < 0.06


def test_intervals_leave_one_base_out():
    generator = np.random.default_rng(5)
    caused = generator.normal(size=(6, 5, 10))
    shown = caused + generator.normal(size=(6, 5, 10))
    found = scores_of(shown, caused)[AGREEMENT].estimate
    rest = [scores_of(np.delete(shown, i, 0), np.delete(caused, i, 0))[AGREEMENT].estimate.value for i in range(6)]
    error = np.sqrt(5 / 6 * ((np.array(rest) - np.mean(rest)) ** 2).sum())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 5) * error)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    high = scores_of(caused + 0.2 * shown[:, ::-1], caused)[AGREEMENT].estimate
    assert high.value < 1 == high.high  # no correlation is larger
    few = scores_of(shown[:4], caused[:4])[AGREEMENT].estimate
    assert few.value is not None and few.low is None and "4 units give no interval" in few.why


def test_constant_readings_are_undefined_and_say_so():
    caused = np.random.default_rng(6).normal(size=(6, 4, 5))
    found = scores_of(np.ones((6, 4, 5)), caused)
    assert found[AGREEMENT].estimate.value is None and found[EXCESS].estimate.value is None
    assert "constant" in found[AGREEMENT].estimate.why


def test_a_placebo_is_scored_at_the_same_sites():
    generator = np.random.default_rng(7)
    caused = generator.normal(size=(5, 6, 8))
    other = caused.copy()
    other[:, 3:] = generator.normal(size=(5, 3, 8))
    found = scores_of(caused, caused, placebos=[changes_of(other)])
    top = found["agreement within top sites, total effect"]
    assert top.nulls["equal-norm placebo"].mean == pytest.approx(1)  # of the sites 0, 1 and 2
    assert found[AGREEMENT].nulls["equal-norm placebo"].mean < 0.9
    assert set(found[AGREEMENT].nulls) == {"shuffled sites", "equal-norm placebo"}


def test_the_ceiling_holds_one_half_of_the_bases_against_the_other():
    from vit_lens.studies.content.agreement import CEILING, DIRECT, baseline_scores, cross_agreement

    table = np.random.default_rng(8).normal(size=(5, 4, 9))
    causal = {"total effect": changes_of(table), "direct effect": changes_of(-table)}
    found = list(baseline_scores(causal, [0, 1], [], seed=0, n_shuffles=5))
    ceiling = next(s for s in found if s.reading == CEILING and s.measure == AGREEMENT)
    halves = [table[start:4:2].mean(0) for start in (0, 1)]
    assert ceiling.estimate.value == pytest.approx(np.diagonal(cross_agreement(*halves)).mean())
    direct = next(s for s in found if s.reading == DIRECT and s.measure == AGREEMENT)
    assert direct.estimate.value == pytest.approx(-1)
    assert all(score.measure.endswith("total effect") for score in found)


# ---- pairs ----------------------------------------------------------------------------------------------------


HEADER = ["image", "partner", "attribute", "caption", "partner_caption"]
ROWS = [["x.png", f"{name}.png", name, f"a {name}", f"no {name}"] for name in ("hat", "dog", "sun")]


def table(tmp_path, rows=ROWS, header=HEADER):
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return tmp_path / "pairs.csv"


def test_a_table_of_pairs_is_read_relative_to_its_file(tmp_path):
    from vit_lens.studies import AttributePairs

    rows = [*ROWS, *([row[0].replace("x", "y"), *row[1:]] for row in ROWS)]
    found = AttributePairs.from_csv(table(tmp_path, rows))
    assert found.base == (0, 0, 0, 1, 1, 1) and found.partner == (2, 3, 4, 5, 6, 7)
    assert found.images[:3] == [tmp_path / "x.png", tmp_path / "y.png", tmp_path / "hat.png"]
    assert found.attributes == ("hat", "dog", "sun") and found.captions[0] == "a hat" and len(found.captions) == 6
    one = found.first(1)
    assert len(one) == 3 and one.images == [tmp_path / name for name in ("x.png", "hat.png", "dog.png", "sun.png")]
    assert found.donors() == (3, 4, 5, 0, 1, 2)  # other captions there are none, another base there is
    assert one.donors() == (0, 1, 2)
    with pytest.raises(StudyError, match="pairs of 3 base images were asked for, and there are 2"):
        found.first(3)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (ROWS, [*HEADER[:4], "partner caption"], "lacks the column\\(s\\) partner_caption"),
        ([[*row, "?"] for row in ROWS], [*HEADER, "captoin"], "unknown column 'captoin'; nearest: .*caption"),
        ([row[:4] for row in ROWS], HEADER, "row 2: expected 5 values"),
        ([["", *row[1:]] for row in ROWS], HEADER, "row 2: expected 5 values"),
        ([[*row[:3], " ", row[4]] for row in ROWS], HEADER, r"pair 0 \(hat\) has no caption; write what is"),
        ([[*row[:4], row[3]] for row in ROWS], HEADER, r"pair 0 \(hat\): both captions are 'a hat'"),
        (ROWS[:1], HEADER, r"pairs in 1 attribute\(s\) \(hat\).*needs at least 3"),
        ([], HEADER, r"pairs in 0 attribute\(s\) \(none\)"),
    ],
)
def test_broken_tables_of_pairs_are_refused(tmp_path, rows, header, said):
    from vit_lens.studies import AttributePairs

    with pytest.raises(StudyError, match=said):
        AttributePairs.from_csv(table(tmp_path, rows, header))


def test_pairs_that_name_no_image_are_refused(tmp_path):
    from vit_lens.studies import AttributePairs

    with pytest.raises(StudyError, match="cannot be read as a table of pairs"):
        AttributePairs.from_csv(tmp_path / "nothing.csv")
    with pytest.raises(StudyError, match="names image 9; there are 9, counted from 0"):
        make_pairs(range(9), 2)
    fields = dict(attribute=("a", "b", "c"), caption=("1", "2", "3"), partner_caption=("4", "5", "6"), images="xyz")
    with pytest.raises(StudyError, match="image 1 is its own partner"):
        AttributePairs(base=(0, 1, 0), partner=(1, 1, 2), **fields)
    with pytest.raises(StudyError, match="every pair has a base, a partner"):
        AttributePairs(base=(0, 0), partner=(1, 1, 2), **fields)


def test_pairs_of_the_world_differ_in_what_their_captions_say():
    """The embedded encoder, which knows its world, sees every partner differ toward its caption."""
    from vit_lens import HookedViT, TextBank
    from vit_lens.mini import world
    from vit_lens.studies.content.mini_set import PAIR_ATTRIBUTES, study_pairs

    pairs = study_pairs(3, seed=5)
    assert len(pairs) == 30 and pairs.attributes == PAIR_ATTRIBUTES and len(pairs.bases) == 3
    for name, *captions in zip(pairs.attribute, pairs.caption, pairs.partner_caption, strict=True):
        assert set(captions) <= set(world.prompts(name)) and captions[0] != captions[1]
    model = HookedViT.from_pretrained("mini")
    with torch.no_grad():
        seen = model(model.preprocess(pairs.images))
    texts, right = TextBank.mini(), []
    logits = texts.logits(seen)
    for pair, name in enumerate(pairs.attribute):
        for side, captions in ((pairs.base, pairs.caption), (pairs.partner, pairs.partner_caption)):
            of_name = {text: float(logits[side[pair], texts.index(text)]) for text in world.prompts(name)}
            right.append(max(of_name, key=of_name.__getitem__) == captions[pair])
    assert np.mean(right) > 0.9  # of 60; chance is a fourth
    again, other = study_pairs(3, seed=5), study_pairs(3, seed=6)
    assert np.array_equal(again.images, pairs.images) and not np.array_equal(other.images, pairs.images)


# ---- the whole study, on random towers and a random decoder ---------------------------------------------------


LENSES = ["diffusion", "dsl:alpha=10", "dsl-mean:alpha=5"]


@pytest.fixture(scope="module")
def study():
    return small_study()


def small_study():
    """A setup maker and what it needs: five bases, three attributes."""
    import tiny_kandinsky
    from test_studies import pictures, tower

    from vit_lens import DecodeSettings, KandinskyDecoder
    from vit_lens.studies import Judge, StudyImages, make_setup

    model, judge = tower(0, "test/tower"), tower(1, "test/judge")
    names, n = "abc", 5
    images = pictures(n * 4 + 24)
    pairs = make_pairs(images[: n * 4], n, names)
    captions = [text for text in CAPTIONS if text[0] in names]
    # captions that the towers do see, or every attribute would be left out: along the change of the whole image
    banks = [_seen_bank(tower_, pairs, captions) for tower_ in (model, judge)]
    unet, movq, scheduler = tiny_kandinsky.parts()
    decoder = KandinskyDecoder(
        unet, movq, scheduler, encoder="test/tower",
        defaults=DecodeSettings(steps=1, guidance=1.0, scheduler="ddim", height=32, width=32),
    )  # fmt: skip

    def setup(out, lenses=LENSES, judge_bank=banks[1], **options):
        drawing = {"decoder": decoder, "judge": Judge(judge, judge_bank)} | options
        sets = StudyImages(pairs.images, images[n * 4 : n * 4 + 12], images[n * 4 + 12 :])
        return make_setup(model, sets, lenses=lenses, out=out, batch_size=16, **drawing)

    return setup, pairs, banks[0]


def _seen_bank(model, pairs, captions):
    from vit_lens import TextBank

    with torch.no_grad():
        seen = model(model.preprocess(pairs.images))
    unit = seen / seen.norm(dim=-1, keepdim=True)
    embeds = torch.zeros(len(captions), seen.shape[1])
    for pair in range(len(pairs)):
        change = unit[pairs.partner[pair]] - unit[pairs.base[pair]]
        embeds[captions.index(pairs.partner_caption[pair])] += change
        embeds[captions.index(pairs.caption[pair])] -= change
    return TextBank(
        captions=tuple(captions), embeds=embeds, logit_scale=9.0, logit_bias=None, encoder_id=model.encoder_id
    )


SMALL = dict(n_largest=3, n_random=2, top=2, n_placebo=3, n_shuffles=9)


def test_the_study_runs_end_to_end_and_goes_on_where_it_stopped(study, tmp_path, monkeypatch):
    from vit_lens.studies import content_study, load_result
    from vit_lens.studies.content.effects import caption_changes
    from vit_lens.studies.similarities import read_lens

    make, pairs, texts = study
    setup = make(tmp_path, progress=False)
    found = content_study(setup, pairs, texts, decoded=["diffusion", "dsl-mean:alpha=5"], n_decoded=4, **SMALL)
    found.save(tmp_path)
    assert load_result(tmp_path).scores == found.scores
    score = found.score(EXCESS, "dsl-mean:alpha=5", "decoded")
    assert (score.n, score.unit) == (4, "bases") and score.estimate.value is not None
    for level in ("embedding", "decoded"):  # read off another base's pictures it is another number
        own = found.score(AGREEMENT, "dsl-mean:alpha=5", level)
        assert abs(own.controls["same site, other image"] - own.estimate.value) > 0.01
    beside = {"equal-norm placebo", "another image's output", "covariance-matched placebo"}
    nulls = found.score(AGREEMENT, "diffusion", "embedding").nulls
    assert set(nulls) == {"shuffled sites", *beside} and len({nulls[name].n_draws for name in beside}) == 1
    sites = found.frame("sites")
    assert len(sites) == 8 and list(sites["drawn as"].value_counts()[["largest", "random", "top"]]) == [1, 2, 2]
    sizes = sites["total effect"]
    assert (
        sizes[sites["drawn as"].isin(["largest", "top"])].min()
        >= sizes[~sites["drawn as"].isin(["largest", "top"])].max()
    )
    # the table holds what a slow reading gives
    from vit_lens import Site

    embeds = read_lens(setup.model, setup.pixels, setup.lenses["dsl:alpha=10"], Site.resolve(["L1H2"], setup.model.cfg))
    changes = caption_changes(texts, embeds, pairs)[:, 0]
    full = caption_changes(texts, setup.clean[:, None], pairs)[:, 0]
    matrix = found.frame("matrix").set_index(["site", "attribute"])["dsl:alpha=10, embedding"]
    for name in pairs.attributes:
        rows = [pair for pair in range(len(pairs)) if pairs.attribute[pair] == name]
        assert matrix["L1H2", name] == pytest.approx(changes[rows].mean() / full[rows].mean(), abs=1e-4)

    def refuse(*args, **kwargs):
        raise RuntimeError("drawn")

    monkeypatch.setattr(type(setup.pictures.decoder), "decode", refuse)
    again = content_study(make(tmp_path), pairs, texts, decoded=["diffusion", "dsl-mean:alpha=5"], n_decoded=4, **SMALL)
    assert again.scores == found.scores and again.tables == found.tables


def test_pictures_of_several_anchors_are_read_apart_and_averaged(study, tmp_path):
    from vit_lens.studies import content_study

    make, pairs, texts = study
    spec = "counterfactual:share=0.5"

    def matrix(out, lens, name):
        setup = make(tmp_path / out, lenses=[lens])
        found = content_study(setup, pairs, texts, decoded=[name], n_decoded=4, controls=["other"], **SMALL)
        nulls = found.score(EXCESS, name, "decoded").nulls
        assert {"equal-norm placebo", "another image's output"} <= set(nulls)  # of all sites that are drawn
        return setup, found.frame("matrix").set_index(["site", "attribute"])[f"{name}, decoded"].dropna()

    setup, averaged = matrix("all", spec, spec)
    alone = setup.lenses[spec].each()
    assert [one.anchors.names for one in alone] == [(f"anchor image {place}",) for place in range(3)]
    each = [matrix(str(place), one, one.describe().label)[1] for place, one in enumerate(alone)]
    assert averaged.to_numpy() == pytest.approx(np.mean([one.to_numpy() for one in each], axis=0), abs=2e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-4


def test_early_mlps_are_scored_by_themselves():
    from vit_lens import Site
    from vit_lens.studies.content.agreement import EARLY, Reading
    from vit_lens.studies.content.study import early_mlps

    changes = changes_of(np.random.default_rng(9).normal(size=(5, 6, 8)))
    reading = Reading(spec="x", level="embedding", changes=changes, causal={}, top=[0], early=[1, 2, 4])
    assert reading.subsets[EARLY] == [1, 2, 4]
    few = Reading(spec="x", level="embedding", changes=changes, causal={}, top=[0], early=[1, 2])
    assert EARLY not in few.subsets
    sites = [Site.parse(name) for name in ("L0H1", "L2.mlp", "L0.mlp", "L1.mlp", "L3.mlp", "L1.attn")]
    assert early_mlps(sites, 4) == [2, 3] and early_mlps(sites, 5) == [1, 2, 3] and early_mlps(sites, 1) == [2]


def test_noise_is_shared_within_a_base_and_nested_over_bases(study, tmp_path, monkeypatch):
    from vit_lens import Condition
    from vit_lens.studies import Pictures, Seen, content_study

    make, pairs, texts = study
    asked = []

    def see(self, embeds, *, noise_seed, label="pictures"):
        asked.append((noise_seed, len(embeds)))
        return Seen(Condition.of(embeds), Condition.of(embeds).flat + noise_seed)

    monkeypatch.setattr(Pictures, "see", see)
    content_study(make(tmp_path, noise_seeds=(4, 7)), pairs, texts, decoded=["diffusion"], n_decoded=3, **SMALL)
    # bases 0 and 2 with seed 4, base 1 with seed 7; each with three partners; five sites, then their placebo
    assert asked == [(4, 8 * 5), (7, 4 * 5), (4, 8 * 5), (7, 4 * 5)]


def test_without_a_decoder_it_says_that_nothing_is_known_of_pictures(study, tmp_path):
    from vit_lens.studies import content_study

    make, pairs, texts = study
    setup = make(tmp_path, decoder=None, judge=None)
    found = content_study(setup, pairs, texts, sites="heads", **SMALL)
    assert {score.level for score in found.scores} == {"embedding"}
    assert "nothing is said about pictures" in found.notes[-1]
    with pytest.raises(StudyError, match="needs a decoder"):
        content_study(setup, pairs, texts, decoded=["diffusion"], **SMALL)


def test_attributes_that_hardly_show_are_left_out_and_reported(study, tmp_path):
    from dataclasses import replace

    from vit_lens.studies import content_study

    make, pairs, texts = study
    blind = texts.embeds.clone()
    blind[[i for i, text in enumerate(texts.captions) if text[0] == "b"]] = texts.embeds[0]
    blind = blind + 1e-6 * torch.arange(len(blind))[:, None]
    dull = replace(texts, embeds=blind)
    with pytest.raises(StudyError, match="2 of 3 attributes change what the encoder and the judge see"):
        content_study(make(tmp_path), pairs, dull, **SMALL)
    four = replace(
        pairs, base=(*pairs.base, 0), partner=(*pairs.partner, pairs.partner[0]),
        attribute=(*pairs.attribute, "again"),
        caption=(*pairs.caption, pairs.caption[0]), partner_caption=(*pairs.partner_caption, pairs.partner_caption[0]),
    )  # fmt: skip
    found = content_study(make(tmp_path, decoder=None, judge=None), four, dull, **SMALL)
    table = found.frame("attributes").set_index("attribute")
    assert (
        list(table["kept"]) == [True, False, True, True] and table["why"]["b"] == "hardly changes what the encoder sees"
    )
    assert "attribute b is left out" in " ".join(found.notes)
    assert "b" not in set(found.frame("matrix")["attribute"])


def test_what_the_study_lacks_is_said(study, tmp_path):
    from dataclasses import replace

    from vit_lens.studies import content_study

    make, pairs, texts = study
    setup = make(tmp_path)
    few = replace(texts, captions=("x", *texts.captions[1:]))
    with pytest.raises(StudyError, match="the encoder's captions lack 'a0' and 0 more"):
        content_study(setup, pairs, few, **SMALL)
    with pytest.raises(StudyError, match="tests other images than the pairs hold"):
        content_study(setup, replace(pairs, images=[*pairs.images[1:], pairs.images[0]]), texts, **SMALL)
    with pytest.raises(StudyError, match="tests other images than the pairs hold"):
        content_study(setup, pairs.first(4), texts, **SMALL)
    with pytest.raises(StudyError, match="dsl:share=9 cannot be decoded: the setup's lenses are diffusion"):
        content_study(setup, pairs, texts, decoded=["dsl:share=9"], **SMALL)
    with pytest.raises(StudyError, match="needs a judge"):
        content_study(make(tmp_path, judge=None), pairs, texts, **SMALL)
    with pytest.raises(StudyError, match="give the judge its captions"):
        content_study(make(tmp_path, judge_bank=None), pairs, texts, **SMALL)
    with pytest.raises(StudyError, match="top=4 sites are scored by themselves and drawn: expected 1 to n_largest=3"):
        content_study(setup, pairs, texts, **{**SMALL, "top": 4})
    with pytest.raises(TextError, match="made for test/judge"):
        content_study(setup, pairs, replace(texts, encoder_id="test/judge"), **SMALL)


# ---- figure and command -----------------------------------------------------------------------------------------


def test_the_figure_shows_both_effects_and_the_reading_row_by_row():
    import pandas as pd

    from vit_lens.errors import RecordError
    from vit_lens.studies.content.figures import content_matrices

    rows = [
        {
            "site": site, "drawn as": drawn, "attribute": name, "total effect": size * k, "direct effect": 0.0,
            "lens, decoded": -size * k if drawn == "top" else None,
        }
        for site, drawn, size in (("L1H0", "top", 0.1), ("L0.mlp", "top", 9.0), ("L0H1", None, 1.0))
        for k, name in enumerate(("hat", "dog<b>", "sun"), start=1)
    ]  # fmt: skip
    figure = content_matrices(pd.DataFrame(rows), "lens, decoded")
    total, direct, lens = figure.data
    assert list(total.y) == ["L1H0", "L0.mlp"] and list(total.x) == ["hat", "dog&lt;b&gt;", "sun"]
    assert np.allclose(total.z, [[1 / 3, 2 / 3, 1]] * 2) and np.allclose(lens.z, -np.array(total.z))
    assert np.allclose(direct.z, 0) and np.allclose(total.customdata[0], [0.1, 0.2, 0.3])
    with pytest.raises(RecordError, match="no reading 'dsl'; there are lens, decoded"):
        content_matrices(pd.DataFrame(rows), "dsl")
    with pytest.raises(RecordError, match="no site drawn as 'random'"):
        content_matrices(pd.DataFrame(rows), "lens, decoded", drawn_as="random")
    with pytest.raises(RecordError, match="not the table 'matrix'"):
        content_matrices(pd.DataFrame(rows).drop(columns="attribute"), "lens, decoded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three bases of the world with partners in three attributes, as files, and other scenes."""
    from PIL import Image

    from vit_lens.mini import world
    from vit_lens.studies.content.mini_set import study_pairs

    path = tmp_path_factory.mktemp("pairs")
    pairs = study_pairs(3, seed=1)
    for number, pixels in enumerate(pairs.images):
        Image.fromarray(pixels).save(path / f"{number}.png")
    kept = [pair for pair in range(len(pairs)) if pairs.attribute[pair] in ("colour", "row", "background")]
    sides = (pairs.attribute, pairs.caption, pairs.partner_caption)
    table(path, [[f"{pairs.base[i]}.png", f"{pairs.partner[i]}.png", *(side[i] for side in sides)] for i in kept])
    (path / "others").mkdir()
    codes = world.sample_codes(6, np.random.default_rng(0))
    for number, pixels in enumerate(world.render_codes(codes)):
        Image.fromarray(pixels).save(path / "others" / f"{number}.png")
    return path


def run_command(*arguments):
    from typer.testing import CliRunner

    from vit_lens.cli import app

    return CliRunner().invoke(app, ["study", "content", "--decoder", "none", *map(str, arguments)])


def test_the_command_reads_a_table_of_pairs(folder, tmp_path):
    given = ("--images", folder / "pairs.csv", "--reference-images", folder / "others", "--n", 2)
    sites = ("--sites", "L6H0,L6H1,L7H0,L7.mlp", "--lens", "diffusion,dsl-mean:alpha=5")
    done = run_command(*given, *sites, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "excess over shuffled sites within sites, total effect" in done.output and "(n = 2 bases)" in done.output
    assert "other measures: see scores.csv" in done.output
    names = {"result.json", "scores.csv", "matrix.csv", "sites.csv", "attributes.csv", "matrices.html"}
    assert names <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--images", "others"), "needs to know them: give a table"),
        (("--images", "pairs.csv"), "--images needs --reference-images"),
        (("--reference-images", "others"), "--reference-images goes with --images"),
        (("--images", "pairs.csv", "--reference-images", "others", "--n", "4"), "4 base images were asked for"),
        (("--control-kind", "other"), "--decoder none draws none"),
    ],
)
def test_the_command_says_what_it_lacks(folder, tmp_path, arguments, said):
    given = [folder / item if item in ("others", "pairs.csv") else item for item in arguments]
    done = run_command(*given, "--out", tmp_path)
    assert isinstance(done.exception, StudyError) and said in str(done.exception)
