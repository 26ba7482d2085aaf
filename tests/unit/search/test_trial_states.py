"""How trials end in a real Optuna storage, and which of them cost nothing."""

from optuna.trial import TrialState

from pipeline.search.attributes import DUPLICATE_OF, INFEASIBLE, TRAINABLE
from pipeline.search.trial_states import enqueue
from tests.support.scripted import DISCRETE, finish, make_search, open_study, states


def test_duplicate_takes_over_the_earlier_result_and_costs_no_budget(study):
    mine = study(DISCRETE)
    (first,) = finish(mine, value=0.7)
    pruned = mine.ask()
    mine.report(pruned.number, 1, 0.2)
    mine.prune(pruned.number, violation=True)
    for params in (first.params, pruned.params):
        enqueue(mine.optuna_study, params)
    proposal = mine.ask()
    again, pruned_again = mine.trials()[2:4]
    assert proposal.params not in (first.params, pruned.params)
    assert (again.user_attrs[DUPLICATE_OF], again.state, again.values) == (0, TrialState.COMPLETE, [0.7])
    assert (pruned_again.user_attrs[DUPLICATE_OF], pruned_again.state) == (1, TrialState.PRUNED)
    assert pruned_again.intermediate_values == {1: 0.2}
    assert pruned_again.constraints == {TRAINABLE: 1.0}
    assert mine.n_finished() == 2
    assert [trial.number for trial in mine.ranked()] == [0]


def test_n_finished_counts_complete_and_pruned_trials_without_duplicates_and_infeasible_ones(study):
    mine = study(DISCRETE + "enqueue: [{kernel_size: 1, depth: 1}, {kernel_size: 5, depth: 2}]", image_shape=(4, 4, 1))
    (first,) = finish(mine)
    mine.prune(mine.ask().number)
    enqueue(mine.optuna_study, first.params)
    mine.fail(mine.ask().number, retry=False)
    assert states(mine).count("COMPLETE") == 2  # the duplicate is one of them
    assert any(INFEASIBLE in trial.user_attrs for trial in mine.trials())  # kernel 5 on 2 x 2 patches
    assert mine.n_finished() == 2
    assert study(DISCRETE, image_shape=(4, 4, 1)).n_finished() == 2


def ooms_proposed(study, trials, tell):
    """Return how many of so many trials were of a configuration that needs more memory than there is."""
    ooms = 0
    for _ in range(trials):
        proposal = study.ask()
        filters, depth = proposal.params["filters"], proposal.params["depth"]
        if filters * depth > 900:  # the best there would be, were there the memory
            ooms += 1
            tell(study, proposal.number)
        else:
            study.complete(proposal.number, [filters * depth / 3000 + proposal.number / 1e6])
    return ooms


def test_tpe_proposes_less_out_of_memory_when_it_violates_a_constraint_than_when_it_fails(tmp_path, monkeypatch):
    """Accuracy grows with the size up to the limit of memory, as in practice: failed trials teach TPE nothing."""
    monkeypatch.setattr(
        "pipeline.search.feasible_space.MAX_ENUMERATED", 0
    )  # to write out 5,964 configurations takes seconds and changes nothing
    search = make_search(tmp_path, "recipe: smoke\nspace: {filters: {low: 16, high: 512}, depth: {low: 1, high: 12}}\n")
    counts = {}
    for name, tell in {
        "failed": lambda study, number: study.fail(number, retry=False),
        "constraint": lambda study, number: study.prune(number, violation=True),
    }.items():
        counts[name] = ooms_proposed(open_study(None, search), 60, tell)
    assert counts["failed"] >= 1.5 * counts["constraint"], counts
