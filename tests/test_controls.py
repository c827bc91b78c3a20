"""Controls of sites: what stands in for what a site writes, against slow computations that know none of the code."""

import math

import numpy as np
import pytest
import tiny_sweep
import torch
from PIL import Image

WIDE = torch.float64


@pytest.fixture(scope="module")
def model():
    return tiny_sweep.tower().to(WIDE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine pictures of noise, the last a copy of the first."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    paths = [folder / f"{name}.png" for name in "abcdefgh"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (31, 25, 3), dtype=np.uint8)).save(path)
    copy = folder / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    return [*paths, copy]


@pytest.fixture(scope="module")
def cache(model, photos):
    return model.run_with_cache(model.preprocess(photos[:8]), rows="readout")[1]


@pytest.fixture(scope="module")
def bank(model, photos):
    from vit_lens.controls import ControlBank

    return ControlBank.from_images(model, photos)


@pytest.fixture(scope="module")
def lenses(model, photos):
    from vit_lens import DiffusionLens, DiffusionSteeringLens, ReferenceMeans

    means = ReferenceMeans.from_images(model, photos[:3])
    return [
        DiffusionLens(),
        DiffusionSteeringLens(alpha=3.0),
        DiffusionSteeringLens(alpha=2.0, anchor="mean", reference=means),
    ]


SITES = ["L0H2", "L1H1", "L1.attn", "L0.mlp", "L1.mlp"]


def against(control, others, **options):
    from vit_lens.controls import Against

    return Against(control=control, generator=torch.Generator().manual_seed(3), others=others, **options)


def seen_by(lens, cache, sites, change):
    """What a lens is given in the place of outputs, and the outputs and origin that it was made of."""
    found = {}

    def spy(outputs, origin, sites, outputs_of):
        found.update(own=outputs, origin=origin, made=change(outputs, origin, sites, outputs_of))
        return found["made"]

    lens.read_changed(cache, sites, spy)
    return found


# ---- which image ------------------------------------------------------------------------------------------------


def test_an_image_is_never_its_own_other_nor_is_a_copy_of_it(bank, photos):
    assert bank.names[0] == "a.png" and bank.names[8] == "copy.png" and bank.hashes[0] == bank.hashes[8]
    for place, digest in enumerate(bank.hashes[:8]):
        others = bank.others([digest], seed=4)
        drawn = [others.at(turn).names()[0] for turn in range(7)]
        assert len(set(drawn)) == 7 and bank.names[place] not in drawn and "copy.png" not in drawn
        assert others.at(7).names()[0] == drawn[0]
    assert len(bank.but("")) == 8  # of what is not known, every picture once


def test_which_image_follows_from_the_image_and_the_seed_alone(bank):
    digests = list(bank.hashes[:8])
    alone = [bank.others([digest], seed=1).names()[0] for digest in digests]
    assert bank.others(digests, seed=1).names() == alone
    assert bank.others(digests[::-1], seed=1).names() == alone[::-1]
    assert len({tuple(bank.others(digests, seed=seed).names()) for seed in range(5)}) == 5


def test_a_large_bank_is_drawn_by_seed(model, photos):
    from vit_lens.controls import ControlBank

    first, same, other = (ControlBank.from_images(model, photos[:8], most=4, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 4 and first.names == same.names != other.names and first.content == same.content


def test_the_bank_holds_what_each_image_writes(model, photos, bank):
    from vit_lens.lenses import site_outputs

    for place in (0, 5):
        embeds, alone = model.run_with_cache(model.preprocess([photos[place]]), rows="readout")
        assert torch.allclose(site_outputs(alone, SITES), site_outputs(bank.cache, SITES)[[place]], atol=1e-12)
        assert torch.allclose(embeds, bank.embeds[[place]], atol=1e-12)


# ---- what stands in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(3))
def test_another_images_output_of_equal_norm(lenses, cache, bank, which):
    """Held to a loop over images and sites in float64, with each image run alone."""
    from vit_lens.lenses import site_outputs

    lens, others = lenses[which], bank.others(bank.hashes[:8], seed=2, turn=1)
    found = seen_by(lens, cache, SITES, against("other", others))
    names = others.names()
    for site, name in enumerate(SITES):
        mean = None if found["origin"] is None else found["origin"][0, site, 0]
        for i in range(8):
            h = site_outputs(cache, [name])[i, 0, 0]
            theirs = site_outputs(bank.cache, [name])[bank.names.index(names[i]), 0, 0]
            own, other = (x if mean is None else x - mean for x in (h, theirs))
            own, other = own - own.mean(), other - other.mean()
            expected = other * own.norm() / other.norm() + (0 if mean is None else mean)
            assert (found["made"][i, site, 0] - expected).abs().max() < 1e-12
            assert names[i] != bank.names[i]


def shrunk(samples):
    """Ledoit and Wolf's estimate, term by term as their paper has it: d x d matrices, one sample after the other."""
    n, d = samples.shape
    s = sum(np.outer(x, x) for x in samples) / n
    m = np.trace(s) / d
    d2 = ((s - m * np.eye(d)) ** 2).sum() / d
    b2 = sum(((np.outer(x, x) - s) ** 2).sum() / d for x in samples) / n**2
    b2 = min(b2, d2)
    return b2 / d2 * m * np.eye(d) + (d2 - b2) / d2 * s, b2 / d2


@pytest.mark.parametrize("n, d", [(5, 33), (7, 24), (40, 6), (300, 5)])
def test_the_spread_is_ledoit_and_wolfs(n, d):
    from vit_lens.controls import Spread

    generator = np.random.default_rng(n)
    samples = generator.normal(size=(n, 2, d)) * np.exp(generator.normal(size=d)) + generator.normal(size=(2, d))
    samples[:, 1, 0] *= 300  # a massive dimension
    spread = Spread.of(torch.from_numpy(samples))
    for site in range(2):
        expected, shrinkage = shrunk(samples[:, site])
        assert spread.shrinkage[site].item() == pytest.approx(shrinkage, abs=1e-10)
        assert np.abs(spread.matrix()[site].numpy() - expected).max() < 1e-9 * np.abs(expected).max()
        values, vectors = np.linalg.eigh(expected)
        x = generator.normal(size=(2, 3, d))
        for power in (0.5, -0.5, -1.0):
            slow = x[site] @ (vectors * values**power) @ vectors.T
            fast = spread.power(torch.from_numpy(x), power)[site].numpy()
            assert np.abs(fast - slow).max() < 1e-9 * max(1.0, np.abs(slow).max())
    if n in (5, 300):
        assert (spread.shrinkage[0] > 0.1) == (n == 5)  # little is left of the round part of many samples


@pytest.mark.parametrize("which", range(3))
def test_a_covariance_matched_direction(lenses, cache, bank, which):
    """The same numbers through the whole matrix, site by site; of equal norm after mean removal."""
    from vit_lens.lenses import site_outputs

    lens, others = lenses[which], bank.others(bank.hashes[:8])
    found = seen_by(lens, cache, SITES, against("covariance", others))
    generator = torch.Generator().manual_seed(3)
    for i in range(8):
        noise = torch.randn((len(SITES), 1, 33), generator=generator, dtype=WIDE)
        for site, name in enumerate(SITES):
            mean = 0.0 if found["origin"] is None else found["origin"][0, site, 0]
            rest = [place for place in range(8) if bank.hashes[place] != bank.hashes[i]]
            samples = site_outputs(bank.cache, [name])[rest, 0, 0] - mean
            samples = (samples - samples.mean(-1, keepdim=True)).numpy()
            values, vectors = np.linalg.eigh(shrunk(samples)[0])
            drawn = (vectors * np.sqrt(values)) @ vectors.T @ noise[site, 0].numpy()
            drawn = torch.from_numpy(drawn - drawn.mean())
            own = found["own"][i, site, 0] - mean
            own = own - own.mean()
            assert (found["made"][i, site, 0] - mean - drawn * own.norm() / drawn.norm()).abs().max() < 1e-9


def test_covariance_is_that_of_the_site_over_many_draws():
    """Directions before they are made as long: their covariance is the spread's."""
    from vit_lens.controls import Material, control_named

    generator = torch.Generator().manual_seed(0)
    others = torch.randn(50, 1, 1, 5, generator=generator, dtype=WIDE) * torch.tensor([9.0, 1, 1, 0.5, 0.1], dtype=WIDE)
    made = [
        control_named("covariance").directions(
            Material(own=others[0], others=others, pick=0, generator=generator, sites=[])
        )[0, 0]
        for _ in range(3000)
    ]
    covariance = torch.stack(made).T @ torch.stack(made) / len(made)
    expected = torch.from_numpy(shrunk(others[:, 0, 0].numpy())[0])
    assert (covariance - expected).norm() < 0.08 * expected.norm()
    assert (covariance.diagonal() / expected.diagonal() - 1).abs().max() < 0.1


def test_the_isotropic_control_has_the_numbers_that_it_had(lenses, cache):
    """Whatever way it is asked for, since records and studies hold them."""
    for lens in lenses:
        old = lens.placebo(cache, SITES, generator=torch.Generator().manual_seed(3))
        assert torch.equal(lens.read_against(cache, SITES, against("random", None)).pooled, old)
        generator = torch.Generator().manual_seed(3)
        found = seen_by(lens, cache, SITES, against("random", None))
        noise = torch.randn((8, len(SITES), 1, 33), generator=generator, dtype=WIDE)
        made = found["made"] if found["origin"] is None else found["made"] - found["origin"]
        assert (
            torch.nn.functional.cosine_similarity(made, noise - noise.mean(-1, keepdim=True), dim=-1).min() > 1 - 1e-12
        )


def test_the_next_image_of_a_cache_is_the_first_other_beside_itself(lenses, cache):
    from vit_lens.controls import ControlBank

    others = ControlBank.of_cache(cache).beside_itself()
    for lens in lenses:
        found = lens.read_against(cache, SITES, against("other", others)).pooled
        assert (found - lens.other_image(cache, SITES)).abs().max() < 1e-12


# ---- normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["std", "whiten"])
@pytest.mark.parametrize("control", ["random", "other", "covariance"])
def test_normalised_controls_against_whole_matrices(lenses, cache, bank, kind, control):
    """Of equal norm where every dimension counts alike; held to d x d matrices in float64."""
    from vit_lens.lenses import site_outputs

    for lens in lenses:
        others = bank.others(bank.hashes[:8], seed=9)
        found = seen_by(lens, cache, SITES, against(control, others, normalise=kind))
        generator = torch.Generator().manual_seed(3)
        for i in range(8):
            noise = torch.randn((len(SITES), 1, 33), generator=generator, dtype=WIDE) if control != "other" else None
            for site, name in enumerate(SITES):
                mean = 0.0 if found["origin"] is None else found["origin"][0, site, 0]
                outputs = site_outputs(bank.cache, [name])[list(others.orders[i]), 0, 0] - mean
                x = (outputs - outputs.mean(-1, keepdim=True)).numpy()
                second = np.diag((x**2).mean(0)) if kind == "std" else shrunk(x)[0]
                values, vectors = np.linalg.eigh(second)
                there, back = ((vectors * values**power) @ vectors.T for power in (-0.5, 0.5))
                own = (found["own"][i, site, 0] - mean).numpy()
                own = there @ (own - own.mean())
                drawn = there @ x[0] if noise is None else noise[site, 0].numpy()
                if control == "covariance":
                    within, along = np.linalg.eigh(shrunk(x @ there)[0])
                    drawn = (along * np.sqrt(within)) @ along.T @ drawn
                drawn = back @ drawn
                drawn = drawn - drawn.mean()
                drawn = drawn * np.linalg.norm(own) / np.linalg.norm(there @ drawn)
                made = (found["made"][i, site, 0] - mean).numpy()
                assert np.abs(made - drawn).max() < 1e-9 * max(1.0, np.abs(drawn).max())


def test_distances_against_loops():
    from vit_lens.controls import Normaliser

    generator = np.random.default_rng(1)
    samples = generator.normal(size=(9, 2, 13)) * np.array([50.0, *[1.0] * 12])
    a, b = generator.normal(size=(2, 4, 2, 13))
    for kind in ("std", "whiten"):
        normaliser = Normaliser.fit(torch.from_numpy(samples), kind)
        for site in range(2):
            second = np.diag((samples[:, site] ** 2).mean(0)) if kind == "std" else shrunk(samples[:, site])[0]
            inverse = np.linalg.inv(second)
            for i in range(4):
                x, y = a[i, site], b[i, site]
                distance = math.sqrt((x - y) @ inverse @ (x - y))
                cosine = x @ inverse @ y / math.sqrt((x @ inverse @ x) * (y @ inverse @ y))
                found = [
                    how(*map(torch.from_numpy, (a, b)))[i, site] for how in (normaliser.distance, normaliser.cosine)
                ]
                assert [float(one) for one in found] == pytest.approx([distance, cosine], abs=1e-9)


def test_one_massive_dimension_hides_what_the_others_say_until_it_is_normalised():
    from vit_lens.controls import Normaliser

    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(60, 1, 20, generator=generator, dtype=WIDE)
    samples[..., 3] = 400 + samples[..., 3]
    a, b = samples[:1], samples[1:2]
    assert torch.cosine_similarity(a, b, dim=-1).item() > 0.999  # two unrelated vectors
    for kind in ("std", "whiten"):
        assert Normaliser.fit(samples, kind).cosine(a, b).abs().item() < 0.6


# ---- what cannot be done ----------------------------------------------------------------------------------------


def test_an_unknown_control_gets_the_nearest(cache, errors):
    from vit_lens.controls import Normaliser, check_controls

    with pytest.raises(errors.LensError, match="no control 'covarience'; nearest: 'covariance'"):
        against("covarience", None)
    with pytest.raises(errors.LensError, match="no normalisation 'witen'; nearest: 'whiten'"):
        against("random", None, normalise="witen")
    with pytest.raises(errors.LensError, match="expected a list of any of 'random', 'other', 'covariance'"):
        check_controls("random")
    with pytest.raises(errors.LensError, match="no normalisation 'mean'"):
        Normaliser.fit(torch.ones(6, 1, 3), "mean")


def test_too_few_images_are_said_with_the_number_needed(model, photos, errors):
    from vit_lens.controls import ControlBank, Normaliser, Spread

    alone = ControlBank.from_images(model, photos[:1])
    with pytest.raises(errors.LensError, match="'other' needs 1 other image, and there is none: give more"):
        against("other", alone.others(alone.hashes))
    with pytest.raises(errors.LensError, match="'other' needs 1 other image, and there is none"):
        against("other", None)
    few = ControlBank.from_images(model, photos[:5])
    with pytest.raises(errors.LensError, match="'covariance' needs 5 other images, and there are 4"):
        against("covariance", few.others(few.hashes))
    with pytest.raises(errors.LensError, match="needs 5 or more"):
        Spread.of(torch.ones(4, 1, 3))
    with pytest.raises(errors.LensError, match="needs 5 or more"):
        Normaliser.fit(torch.ones(4, 1, 3), "std")
    with pytest.raises(errors.LensError, match="normalise='std' is fitted on other images"):
        against("random", None, normalise="std")


def test_a_bank_of_another_model_is_refused(bank, photos, lenses, errors):
    from conftest import randomize

    other = tiny_sweep.tower().to(WIDE)
    randomize(other, seed=8)
    cache = other.run_with_cache(other.preprocess(photos[:2]), rows="readout")[1]
    with pytest.raises(errors.ReferenceMismatchError, match=r"bank of controls \(9 images\) was"):
        lenses[0].read_against(cache, SITES, against("other", bank.others(bank.hashes[:2])))


def test_others_of_another_number_of_images_are_refused(bank, cache, lenses, errors):
    with pytest.raises(errors.LensError, match="beside 2 images, and the cache holds 8"):
        lenses[0].read_against(cache, SITES, against("other", bank.others(bank.hashes[:2])))


def test_a_bank_needs_images(model, photos, errors):
    from vit_lens.controls import ControlBank

    with pytest.raises(errors.LensError, match="at least one image"):
        ControlBank.from_images(model, [])
    with pytest.raises(errors.LensError, match="2 images with 1 names"):
        ControlBank.from_images(model, photos[:2], names=["a"])
    with pytest.raises(errors.LensError, match="rows='some'"):
        ControlBank.from_images(model, photos[:2], rows="some")


def test_a_further_control_is_one_class(cache, lenses, errors):
    from vit_lens.controls import CONTROLS, Control, control

    @control("nothing but ones")
    class Ones(Control):
        words, meaning = "ones", "nothing"

        def directions(self, material):
            return torch.arange(33.0, dtype=WIDE).expand_as(material.own)

    try:
        assert lenses[0].read_against(cache, SITES, against("nothing but ones", None)).rows == (8, 5)
        with pytest.raises(errors.LensError, match="taken"):
            control("random")(Ones)
    finally:
        del CONTROLS["nothing but ones"]


def test_a_lens_of_anybodys_has_the_controls_that_it_gives(cache, bank, errors):
    from vit_lens import Condition, DiffusionLens, Lens

    class Half(Lens):
        """Half of the Diffusion Lens."""

        def reads(self, site):
            return True

        def read(self, cache, sites):
            return Condition(pooled=DiffusionLens().embed(cache, sites) / 2)

    class Isotropic(Half):
        def read_control(self, cache, sites, *, generator):
            return Condition(pooled=DiffusionLens().placebo(cache, sites, generator=generator) / 2)

    class Whole(Half):
        def read_changed(self, cache, sites, change):
            return Condition(pooled=DiffusionLens().read_changed(cache, sites, change).pooled / 2)

    others = bank.others(bank.hashes[:8])
    random = against("random", None)
    with pytest.raises(errors.LensError, match="has no control"):
        Half().read_against(cache, SITES, random)
    with pytest.raises(errors.LensError, match="no control but 'random': give it read_changed"):
        Isotropic().read_against(cache, SITES, against("other", others))
    assert not Half().has_control and Isotropic().has_control and not Isotropic().has_controls and Whole().has_controls
    expected = DiffusionLens().read_against(cache, SITES, against("covariance", others)).pooled / 2
    assert torch.equal(Whole().read_against(cache, SITES, against("covariance", others)).pooled, expected)
    for lens in (Isotropic(), Whole()):
        found = lens.placebo(cache, SITES, generator=torch.Generator().manual_seed(3))
        assert torch.equal(lens.read_against(cache, SITES, against("random", None)).pooled, found)


def test_where_another_image_says_nothing_the_next_that_does_stands_in():
    """A head that writes one of two vectors writes for some other images what it writes for the anchor."""
    from vit_lens import Site
    from vit_lens.controls import OtherImage
    from vit_lens.controls.contract import Material

    others = torch.randn(4, 2, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others[[2, 3], 0] = 0
    sites = [Site.parse("L0H0"), Site.parse("L0H1")]
    for pick, expected in ((0, (0, 0)), (1, (1, 1)), (2, (0, 2)), (3, (0, 3))):
        material = Material(own=others[0], others=others, pick=pick, generator=torch.Generator(), sites=sites)
        found = OtherImage().directions(material)
        assert torch.equal(found, torch.stack([others[place, site] for site, place in enumerate(expected)]))
