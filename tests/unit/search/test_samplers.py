"""Samplers: each draws within the space, again with the same seed; what one needs is refused in a line without it."""

import typing
from importlib.util import find_spec
from statistics import median

import pytest

from pipeline.config.search import SearchConfig
from pipeline.search import samplers
from pipeline.search.distributions import contains
from pipeline.search.samplers import PACKAGES, SAMPLERS, validate_sampler
from tests.support.errors import usage_error
from tests.support.scripted import make_search, open_study

MIXED = """recipe: smoke
space: {learning_rate: {low: 1e-3, high: 0.1, log: true}, depth: {low: 1, high: 4}, flip: [true, false]}
"""
CONDITIONAL = (
    "recipe: smoke\nspace: {depth: [1, 2], learning_rate: {low: 1e-3, high: 0.1, log: true, when: {depth: 2}}}\n"
)


def needs_package(sampler):
    package = PACKAGES.get(sampler)
    missing = package is not None and find_spec(package) is None
    return pytest.param(sampler, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


@pytest.fixture
def draw(tmp_path):
    """Returns so many configurations that a new study proposes; their value is the better the greater the rate is."""

    def drawn(text, *flags, trials=12):
        study = open_study(None, make_search(tmp_path, text, *flags))
        proposals = []
        for _ in range(trials):
            proposal = study.ask()
            value = proposal.params.get("learning_rate", 0.0)
            study.complete(proposal.number, [value, 1.0][: len(study.search.directions)])
            proposals.append(dict(proposal.params))
        return study.search, proposals

    return drawn


def test_every_sampler_of_the_settings_is_registered():
    assert set(SAMPLERS) == set(typing.get_args(SearchConfig.model_fields["sampler"].annotation))


@pytest.mark.parametrize("sampler", [needs_package(name) for name in SAMPLERS if name != "grid"])
def test_sampler_draws_within_the_space_and_again_with_the_same_seed(draw, sampler):
    flags = ["--sampler", sampler, *(["--metric", "val_accuracy,parameters"] if sampler == "nsga2" else [])]
    search, proposals = draw(MIXED, *flags)
    for params in proposals:
        assert params.keys() == search.space.keys()
        assert all(contains(search.space[name], value) for name, value in params.items())
    assert len({str(params) for params in proposals}) == len(proposals)
    assert draw(MIXED, *flags)[1] == proposals


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_sampler_draws_conditional_settings_only_where_their_condition_holds(draw, sampler):
    _, proposals = draw(CONDITIONAL, "--sampler", sampler, trials=15)
    assert all(("learning_rate" in params) == (params["depth"] == 2) for params in proposals)
    # the other depth has a single configuration
    assert sum(params["depth"] == 2 for params in proposals) == 14


def test_tpe_learns_a_conditional_setting(draw):
    _, proposals = draw(CONDITIONAL, trials=40)
    rates = [params["learning_rate"] for params in proposals if params["depth"] == 2]
    # that of random ones is 0.01
    assert median(rates[-10:]) > 0.05


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (MIXED, ["--sampler", "nsga2"], "sampler=nsga2 must have two metrics, got val_accuracy; try metric="),
        (
            MIXED,
            ["--sampler", "cmaes", "--metric", "val_accuracy,parameters"],
            "sampler=cmaes must have one metric, got val_accuracy,parameters; try sampler=nsga2",
        ),
        (CONDITIONAL, ["--sampler", "qmc"], "sampler=qmc must have a space without conditions, got some (when); try"),
    ],
)
def test_sampler_that_does_not_suit_the_search_is_refused(tmp_path, text, flags, message):
    assert message in usage_error(make_search, tmp_path, text, *flags)


def test_sampler_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda package: None)
    for sampler, package in PACKAGES.items():
        refused = usage_error(validate_sampler, SearchConfig.build({"sampler": sampler}), conditional=False)
        assert refused.startswith(f"sampler={sampler} must have the package {package}, which is not installed; try ")
        assert refused.endswith(f" -m pip install --group {sampler}")
