import json
import re

import nbformat
import pytest
from nbformat import v4

from explr import ExplrError
from explr.book.ledger import BEYOND, CENTRAL, CLAIMS, VERDICTS, claim, ledger


def notebook_with(folder, name, *claims):
    cells = []
    for made in claims:
        data, metadata = made._repr_mimebundle_()
        cells.append(v4.new_code_cell("…", outputs=[v4.new_output("execute_result", data, metadata=metadata)]))
    nbformat.write(v4.new_notebook(cells=cells), folder / name)


def test_verdict_follows_the_number():
    assert claim("lr-size", "x", 1.0, at_most=1.0).holds and not claim("lr-size", "x", 1.1, at_most=1.0).holds
    assert claim("lr-size", "x", True, at_least=1).holds and not claim("lr-size", "x", False, at_least=1).holds
    assert claim("lr-size", "x", 1.4812, equals=1.481, within=5e-4).holds
    assert not claim("lr-size", "x", 1.4822, equals=1.481, within=5e-4).holds


def test_a_number_that_is_none_says_nothing_of_a_claim():
    with pytest.raises(ExplrError, match="claim 'lr-size': measured nan"):
        claim("lr-size", "steps", float("nan"), at_most=20)


def test_a_claim_says_what_was_measured_and_what_it_was_held_against():
    assert str(claim("lr-size", "steps", 12.0, at_most=20)) == "[lr-size] holds: steps, measured 12 (at most 20)"
    assert str(claim("lr-size", "steps", 30.0, at_most=20)) == "[lr-size] FAILS: steps, measured 30 (at most 20)"
    assert "holds, with a caveat" in str(claim("lr-size", "steps", 12.0, at_most=20, caveat="On a quadratic."))


@pytest.mark.parametrize(
    "bound, interval, verdict",
    [
        ({"at_most": 0.5}, (0.1, 0.5), "holds"),
        ({"at_most": 0.5}, (0.1, 0.6), "undecided"),
        ({"at_most": 0.1}, (0.2, 0.6), "FAILS"),
        ({"at_least": 0.1}, (0.1, 0.6), "holds"),
        ({"at_least": 0.3}, (0.1, 0.6), "undecided"),
        ({"at_least": 0.7}, (0.1, 0.6), "FAILS"),
        ({"equals": 1.0, "within": 0.9}, (0.1, 0.6), "holds"),
        ({"equals": 0.5, "within": 0.2}, (0.1, 0.6), "undecided"),
        ({"equals": 0.0, "within": 0.05}, (0.1, 0.6), "FAILS"),
    ],
)
def test_an_interval_decides_only_when_all_of_it_is_on_one_side(bound, interval, verdict):
    made = claim("lr-size", "x", 0.3, **bound, interval=interval)
    assert made.verdict == verdict and "interval {} to {}; ".format(*interval) in str(made)
    assert claim("lr-size", "x", 0.3, **bound, interval=interval, caveat="Small.").verdict == (
        "holds, with a caveat" if verdict == "holds" else verdict
    )


def test_a_measurement_that_is_too_small_is_undecided_whatever_it_shows_and_says_why():
    made = claim("lr-size", "steps", 12.0, at_most=20, undecided="A toy.")
    assert str(made) == "[lr-size] undecided: steps, measured 12 (at most 20). A toy."
    assert "<strong>undecided</strong>" in made._repr_mimebundle_()[0]["text/html"]


def test_a_measurement_with_an_interval_that_is_too_small_keeps_it_and_is_not_forgotten_beside_a_toy():
    made = claim("figure5", "x", 0.1, equals=0.0, within=1.0, interval=(0.0, 0.2), undecided="Two seeds.", caveat="Short.")
    assert str(made) == "[figure5] undecided: x, measured 0.1 (interval 0 to 0.2; 0 within 1). Two seeds. Short."
    assert not made.gives_way and claim("figure5", "x", 0.1, equals=0.0, within=1.0, undecided="A toy.").gives_way


def test_a_claim_is_what_its_worst_measurement_says_but_what_is_too_small_gives_way(tmp_path):
    small = claim("lr-size", "x", 1.0, at_most=2.0, undecided="A toy.")
    good, bad = (claim("lr-size", "x", 1.0, at_most=bound) for bound in (2.0, 0.5))
    wide = claim("lr-size", "x", 1.0, at_most=2.0, interval=(0.0, 3.0))
    for number, (measured, verdict) in enumerate(
        [([small], "undecided"), ([small, good], "holds"), ([good, wide], "undecided"), ([wide, bad, small], "FAILS")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        notebook_with(folder, "01-one.ipynb", *measured)
        (entry,) = (entry for entry in ledger(folder) if entry.key == "lr-size")
        assert entry.verdict == verdict and [m for _, _, m in entry.measurements] == measured


def test_a_page_shows_the_claim_in_words_and_escapes_what_was_measured():
    data, _ = claim("lr-size", "a < b", 30.0, at_most=20)._repr_mimebundle_()
    assert CLAIMS["lr-size"] in data["text/html"]
    assert "<strong>FAILS</strong>: a &lt; b, measured 30 (at most 20)" in data["text/html"]


def test_ledger_reads_verdicts_and_places_from_the_notebooks(tmp_path):
    good, bad = claim("any-data", "error", 1e-12, at_most=1e-10), claim("any-data", "error", 1.0, at_most=1e-10)
    notebook_with(tmp_path, "01-one.ipynb", good, claim("lr-size", "x", 1.0, at_most=2.0, caveat="<Only> here."))
    notebook_with(tmp_path, "02-two.ipynb", bad)
    entries = {entry.key: entry for entry in ledger(tmp_path)}
    assert list(entries) == list(CLAIMS)
    assert entries["any-data"].verdict == "FAILS"
    assert [(where, m) for where, _, m in entries["any-data"].measurements] == [("01-one", good), ("02-two", bad)]
    assert entries["lr-size"].verdict == "holds, with a caveat"
    assert entries["theorem1"].verdict == "not measured"
    shown = ledger(tmp_path)._repr_html_()
    assert 'href="01-one.html"' in shown and "&lt;Only&gt; here." in shown and shown.count("<tr") == len(CLAIMS) + 1


def some_of_each(folder):
    notebook_with(
        folder,
        "01-one.ipynb",
        claim("any-data", "error", 1e-12, at_most=1e-10),
        claim("equivalence", "error", 0.0, equals=0, caveat="<Only> here."),
        claim("equivalence", "other error", 0.5, equals=0, within=1),
        claim("figure5", "difference", 0.001, equals=0.0, within=0.005, interval=(-0.007, 0.009)),
        claim("head-accuracy", "lost", 0.04, at_most=0.005),
    )
    return ledger(folder)


def test_the_summary_counts_every_claim_once(tmp_path):
    counts = some_of_each(tmp_path).summary().counts
    assert counts == {"holds": 1, "holds, with a caveat": 1, "undecided": 1, "FAILS": 1, "not measured": len(CLAIMS) - 4}
    assert list(ledger(tmp_path / "empty").summary().counts) == [*VERDICTS, "not measured"]
    measured = ledger(tmp_path, {"any-data": CLAIMS["any-data"]}).summary().counts
    assert measured == {"holds": 1, "holds, with a caveat": 0, "undecided": 0, "FAILS": 0}


def test_the_summary_names_what_is_open_and_what_matters_most_with_the_measurement_that_decides(tmp_path):
    summary = some_of_each(tmp_path).summary()
    assert {name: [entry.key for entry in entries] for name, entries in summary.open.items() if name != "not measured"} == {
        "undecided": ["figure5"],
        "FAILS": ["head-accuracy"],
    }
    assert [(entry.key, why) for entry, why in summary.central] == list(CENTRAL.items())
    text = repr(summary)
    assert "undecided: 1\n" in text and "\nFAILS: head-accuracy\n" in text and "[lemma1-inverse] not measured" in text
    assert "[equivalence] holds, with a caveat: error, measured 0" in text and "[figure5] undecided" in text
    shown = summary._repr_html_()
    assert "Holds, with a caveat</strong>: error, measured 0" in shown and "other error" not in shown


def test_the_summary_links_to_rows_of_the_table_and_escapes_what_was_measured(tmp_path):
    entries = some_of_each(tmp_path)
    rows, shown = entries._repr_html_(), entries.summary()._repr_html_()
    targets = re.findall('href="#([^"]+)"', shown)
    assert {"claim-figure5", "claim-head-accuracy"} <= set(targets)
    assert [target for target in targets if f'id="{target}"' not in rows] == []
    assert "&lt;Only&gt; here." in shown and CLAIMS["head-accuracy"] in shown


def test_what_goes_beyond_the_source_is_listed_apart_from_its_claims(tmp_path):
    ours = claim("adamw-twin", "error", 1e-12, at_most=1e-10)
    notebook_with(tmp_path, "01-one.ipynb", ours, claim("lr-size", "x", 1.0, at_most=2.0))
    assert not CLAIMS.keys() & BEYOND.keys()
    assert [entry.key for entry in ledger(tmp_path)] == list(CLAIMS)
    beyond = ledger(tmp_path, BEYOND)
    assert {entry.key: entry.verdict for entry in beyond if entry.measurements} == {"adamw-twin": "holds"}
    assert "Claim of the source" not in beyond._repr_html_() + ours._html()


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda folder: claim("magic", "x", 1.0, at_most=1.0), "'magic'"),
        (lambda folder: claim("lr-size", "x", 1.0), "exactly one"),
        (lambda folder: claim("lr-size", "x", 1.0, at_most=1.0, at_least=0.0), "exactly one"),
        (lambda folder: claim("lr-size", "x", 1.0, at_most=1.0, interval=(2.0, 3.0)), "interval, 2.0 to 3.0"),
        (lambda folder: (folder / "x.ipynb").write_text("{") and ledger(folder), "x.ipynb"),
        (lambda folder: (folder / "y.ipynb").write_text(stray()) and ledger(folder), "y.ipynb"),
    ],
)
def test_bad_input_gets_one_error_that_restates_it(tmp_path, call, part):
    with pytest.raises(ExplrError) as caught:
        call(tmp_path)
    assert part in str(caught.value)


def stray():
    return json.dumps({"cells": [{"id": "a", "outputs": [{"metadata": {"explr": {"key": "magic"}}}]}]})
