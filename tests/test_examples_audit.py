"""The example of the audit runs and makes its picture."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "audit_while_training.py"


def loaded():
    specification = importlib.util.spec_from_file_location("audit_while_training", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_example_trains_says_its_verdicts_and_leaves_its_table_and_picture(tmp_path, capsys):
    loaded().main(["--steps", "21000", "--out", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["step 10,240", "step 20,480"]
    assert (tmp_path / "audits.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "audits.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert list(tmp_path.glob("PPO_1/events.out.tfevents.*"))
