"""The runner of claims: what is kept, what is reused, what is refused, and that few seeds never pass."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from icrl_gym import cli
from icrl_gym.configuration import ReproduceConfig
from icrl_gym.reproduction import claims, mrps, runner, sources
from icrl_gym.reproduction import store as store_module
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement, table_of
from icrl_gym.reproduction.store import Store

ROOT = Path(__file__).parents[1]


class Counting:
    """A claim's function that counts its calls and those of its pieces, and can be told to break off."""

    def __init__(self, fail_at=None):
        self.calls, self.pieces, self.fail_at = 0, [], fail_at

    def __call__(self, quick, seeds, device, store):
        self.calls += 1
        values = [float(store.arrays(f"seed-{seed}", lambda s=seed: self.piece(s))["x"]) for seed in seeds]
        figure = Figure()
        figure.subplots().plot(values)
        table = table_of(("a", "c"), (("1|2", "3"),), "Numbers")
        findings = (Finding.mean("x", values), Finding("y", np.nan, 1))
        statements = (Statement("It counts.", "holds"), Statement("It sings.", "not tested"))
        return Outcome(statements, findings, "by day", "None.", figure, "Line.", (table,))

    def piece(self, seed):
        if seed == self.fail_at:
            raise KeyboardInterrupt
        self.pieces.append(seed)
        return {"x": np.array(seed * 2.0)}


def a_claim(function, **changes):
    texts = {"title": "T", "statement": "S", "source": "ours", "measured": "M", "criterion": "C"}
    claim = Claim(number=1, id="one", function=function, num_seeds=3, quick_seeds=2, least_seeds=3, **texts)
    return replace(claim, **changes)


@pytest.fixture
def one_claim(monkeypatch):
    function = Counting()
    table = {"one": a_claim(function)}
    monkeypatch.setattr(runner, "CLAIMS", table)
    return function


def config(tmp_path, **changes):
    return ReproduceConfig(run_dir=tmp_path / "run", tensorboard=False, **changes)


def test_a_finished_claim_is_reused_with_all_it_found(one_claim, tmp_path):
    first = runner.reproduce(config(tmp_path))[0]
    second = runner.reproduce(config(tmp_path))[0]
    assert one_claim.calls == 1
    assert second.outcome.findings[0] == first.outcome.findings[0]
    assert np.isnan(second.outcome.findings[1].value)
    assert second.outcome.statements == first.outcome.statements
    assert (second.outcome.headline, second.outcome.tables) == ("holds by day", first.outcome.tables)
    assert second.figure is not None
    assert second.figure.read_bytes()[:4] == b"\x89PNG"


def test_an_interrupted_claim_goes_on_at_the_seed_where_it_stopped(one_claim, tmp_path):
    one_claim.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        runner.reproduce(config(tmp_path))
    assert not (tmp_path / "run" / "one" / "result.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    one_claim.fail_at = None
    runner.reproduce(config(tmp_path))
    assert one_claim.pieces == [0, 1, 2]


def test_other_seeds_measure_again_but_keep_finished_pieces(one_claim, tmp_path):
    runner.reproduce(config(tmp_path))
    assert runner.reproduce(config(tmp_path, seeds=4))[0].num_seeds == 4
    assert (one_claim.calls, one_claim.pieces) == (2, [0, 1, 2, 3])


def test_rerun_measures_everything_again(one_claim, tmp_path):
    runner.reproduce(config(tmp_path))
    runner.reproduce(config(tmp_path, rerun=True))
    assert one_claim.pieces == [0, 1, 2] * 2


@pytest.mark.parametrize("few", [{"quick": True}, {"seeds": 2}])
def test_fewer_seeds_than_the_criterion_needs_never_pass(one_claim, tmp_path, few):
    result = runner.reproduce(config(tmp_path, **few))[0]
    assert result.outcome.verdict == "not enough evidence"
    assert result.outcome.headline == "not enough evidence with 2 of the 3 seeds that the criterion needs"
    assert runner.reproduce(config(tmp_path / "again", seeds=3))[0].outcome.verdict == "holds"


def test_the_report_holds_numbers_figure_command_and_verdict(one_claim, tmp_path):
    page = tmp_path / "page.md"
    runner.reproduce(config(tmp_path, report=page, seeds=4))
    text = page.read_text()
    assert "| x | 3.00 | [-1.11, 7.11] | 4 |" in text  # mean of 0 2 4 6, Student's t of 3 degrees of freedom
    assert "| y | undefined | - | 1 |" in text
    assert "| 1\\|2 | 3 |" in text
    assert "| It sings. | not tested |" in text
    assert "`icrl-gym reproduce one --seeds 4`" in text
    assert "**Verdict: holds by day.** None." in text
    assert "(page/one.png)" in text
    assert (tmp_path / "page" / "one.png").is_file()
    assert (tmp_path / "run" / "reproduction.md").is_file()


def test_events_hold_findings_and_figure(one_claim, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner.reproduce(replace(config(tmp_path), tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "events" / "one"))
    events.Reload()
    assert events.Tags()["scalars"] == ["x"]
    assert events.Tags()["images"] == ["figure"]


def test_a_run_folder_of_another_kind_is_refused(one_claim, tmp_path):
    runner.reproduce(config(tmp_path))
    with pytest.raises(ValueError, match=r"run_dir: .* another kind of run"):
        runner.reproduce(config(tmp_path, quick=True))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"run_dir: .* something else"):
        runner.reproduce(replace(config(tmp_path), run_dir=other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"report": Path("x.txt")}, "report must end in .md"),
        ({"device": "toaster"}, "device: 'toaster'"),
        ({"claims": ("one", "two")}, "no claim 'two'; there are 1 one"),
    ],
)
def test_bad_input_is_one_line_that_names_it(one_claim, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        runner.reproduce(config(tmp_path, **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_claims_are_found_by_number_and_by_name():
    assert runner.find_claims(["1"]) == runner.find_claims(["forward-pass"]) == [claims.CLAIMS["forward-pass"]]
    assert runner.find_claims([]) == list(claims.CLAIMS.values())


def test_numbers_and_names_of_claims_are_unique_and_in_order():
    numbers = [claim.number for claim in claims.CLAIMS.values()]
    assert numbers == sorted(set(numbers))
    assert all(claim.num_seeds >= claim.least_seeds for claim in claims.CLAIMS.values())


def test_the_command_line_lists_the_claims_for_an_unknown_one(capsys, tmp_path):
    assert cli.main(["reproduce", "perpetual-motion", "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(name in error for name in claims.CLAIMS)


def test_the_command_line_prints_one_verdict_per_claim(one_claim, capsys, tmp_path):
    assert cli.main(["reproduce", "1", "--run-dir", str(tmp_path / "run"), "--no-tensorboard"]) == 0
    assert capsys.readouterr().out == " 1  T: holds by day\n"


def test_the_script_says_what_it_does():
    command = [sys.executable, "scripts/reproduce.py", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "docs/reproduction.md" in shown


def test_a_damaged_piece_and_a_damaged_result_are_named(tmp_path, one_claim):
    store = Store(tmp_path / "claim", __name__)
    (tmp_path / "claim" / "seed-0.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"seed-0\.npz is not an archive"):
        store.arrays("seed-0", lambda: {})
    runner.reproduce(config(tmp_path))
    path = tmp_path / "run" / "one" / "result.json"
    path.write_text(json.dumps({"claim": "one"}))
    with pytest.raises(ValueError, match=r"result\.json is not a result"):
        runner.reproduce(config(tmp_path))


def test_intervals_by_hand():
    mean = Finding.mean("m", [1.0, 2.0, 3.0])
    assert (mean.value, mean.n) == (2.0, 3)
    assert mean.high == pytest.approx(2 + 4.302653 / np.sqrt(3))  # Student's t of two degrees of freedom
    assert Finding.mean("m", [1.0]).low is None
    share = Finding.share("s", 8, 10)
    assert (share.low, share.high) == (pytest.approx(0.490162, abs=1e-5), pytest.approx(0.943318, abs=1e-5))


def test_a_verdict_is_that_of_the_statements_that_decide():
    def outcome(*verdicts, beside=()):
        statements = [Statement("S.", verdict) for verdict in verdicts]
        return Outcome((*statements, *(Statement("B.", verdict, decides=False) for verdict in beside)), ())

    assert outcome("holds", "not tested", beside=["does not hold"]).headline == "holds"
    assert outcome("holds", "does not hold", "not enough evidence").headline == "holds in part (1 of 3 statements)"
    assert outcome("does not hold", "not enough evidence", beside=["holds"]).headline == "does not hold"
    assert outcome("not enough evidence", "not tested").headline == "not enough evidence"


def test_bad_statements_and_tables_are_refused():
    with pytest.raises(ValueError, match="verdict must be one of"):
        Statement("S.", "probably")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one that decides"):
        Outcome((Statement("S.", "holds", decides=False),), ())
    with pytest.raises(ValueError, match="2 cells"):
        table_of(("a", "b"), (("1",),))


def test_another_criterion_is_measured_again_and_says_so(one_claim, tmp_path, monkeypatch, caplog):
    runner.reproduce(config(tmp_path))
    assert not caplog.messages
    monkeypatch.setattr(runner, "CLAIMS", {"one": a_claim(one_claim, criterion="stricter")})
    assert not runner.stored_results(tmp_path / "run")
    assert runner.reproduce(config(tmp_path))[0].criterion == "stricter"
    assert caplog.messages == ["one: measured again, since it was stored with other criterion"]
    assert (one_claim.calls, one_claim.pieces) == (2, [0, 1, 2])


def test_other_code_is_measured_again_with_all_its_pieces_and_says_so(one_claim, tmp_path, monkeypatch, caplog):
    runner.reproduce(config(tmp_path))
    for module in (runner, store_module):
        monkeypatch.setattr(module, "fingerprint", lambda module: "another")
    assert not runner.stored_results(tmp_path / "run")
    assert runner.reproduce(config(tmp_path))[0].sources == "another"
    assert caplog.messages[0] == "one: measured again, since it was stored with other sources"
    assert "is not the one that made it" in caplog.messages[1]
    assert one_claim.pieces == [0, 1, 2] * 2


def test_a_fingerprint_is_that_of_all_code_behind_a_claim(tmp_path, monkeypatch):
    def changed(old, new):
        text = Path(kernel.__file__).read_text()
        assert old in text
        (tmp_path / "changed.py").write_text(text.replace(old, new))
        real = sources._file
        mine = lambda module: tmp_path / "changed.py" if module == kernel.__name__ else real(module)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(sources, "_file", mine)
            return sources.fingerprint.__wrapped__(claim)

    claim, kernel = "icrl_gym.reproduction.minimiser", mrps
    here = sources.fingerprint(claim)
    assert changed('"""', '"""') == here
    assert changed('"""Boyan', '"""Other') == here
    assert changed("uniform(", "normal(") != here
    assert sources.fingerprint("icrl_gym.reproduction.boyan") != here
