"""The command line: JSON last, exit codes, one sentence per mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def vla_prune(*args: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vla_prune.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


def last_json(result: subprocess.CompletedProcess) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_doctor_names_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    found = last_json(
        vla_prune("doctor", "--json", VLA_PRUNE_LIBERO_ASSETS="", HOME=str(tmp_path))
    )
    assert found["torch"]["ok"]
    for check in found.values():
        assert check["ok"] or check["remedy"]


def test_list_shows_every_shipped_recipe() -> None:
    found = last_json(vla_prune("list", "--json"))
    recipes = {"dense", "random", "grid", "fastv", "divprune", "vla_pruner", "dual_level", "blind"}
    assert recipes <= set(found["recipe"])


def test_bench_ends_with_one_json_line(tmp_path: Path) -> None:
    from tests.test_bench import TINY

    (tmp_path / "tiny.yaml").write_text(TINY)
    path = tmp_path / "bench.yaml"
    path.write_text(f"policy: {tmp_path}/tiny.yaml\nrecipes: [fastv]\nrepeats: 1\nwarmup: 0\n")
    found = last_json(vla_prune("bench", str(path), "--json"))
    assert {"recipe", "keep_ratio", "speedup", "ideal", "selection_fraction"} <= set(
        found["rows"][1]
    )
    assert found["machine"]["processor"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("bench", "decoder13"), "did you mean 'decoder12'"),
        (("bench", "decoder12", "--recipes", "fastw"), "did you mean 'fastv'"),
        (("bench", "decoder12", "--set", "repeets=2"), "did you mean 'repeats'"),
        (("run", "nowhere.yaml"), "no such config file"),
        (("run", "libero_smoke", "--recipes", "bilnd"), "did you mean 'blind'"),
        (("draw", "decoder13"), "did you mean 'decoder12'"),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(args: tuple[str, ...], message: str) -> None:
    result = vla_prune(*args)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_wrong_usage_exits_with_2() -> None:
    assert vla_prune("bench").returncode == 2


def test_an_export_that_differs_from_torch_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_prune import cli
    from vla_prune.recon import export

    monkeypatch.setattr(export, "export", lambda *_: {"parity": {"passed": False}})
    monkeypatch.setattr(export, "told", lambda _: "1 of 10 frames differ")
    monkeypatch.setattr(
        sys, "argv", ["vla-prune", "export", "pocket_libero_spatial", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
