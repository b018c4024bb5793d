"""Profiles: measured on a tiny decoder, saved, loaded, checked; what is wrong is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.tune.synthetic import RATIOS, SUBJECT, profile
from vla_prune import build, cli, config
from vla_prune.errors import ConfigError, MissingError
from vla_prune.tune import measure
from vla_prune.tune.profile import Profile, recipe_hash

TINY = """# x
# y
adapter: bare_decoder
llm: {vocab_size: 8, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 6,
      num_attention_heads: 4}
views: [{name: a, rows: 8, cols: 8}]
text_tokens: 5
decode_steps: 1
seed: 0
device: cpu
dtype: float32
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("policy") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="module")
def measured(policy: str) -> Profile:
    return measure.measure(
        measure.ProfileConfig(policy, buckets=(0.25, 1.0, 0.5), rounds=3, warmup=1)
    )


def test_every_bucket_has_every_stage_in_every_round(measured: Profile) -> None:
    assert [(b.recipe, b.keep_ratio) for b in measured.buckets] == [
        ("dense", 1.0), ("dual_level", 1.0), ("dual_level", 0.5), ("dual_level", 0.25)
    ]  # fmt: skip
    assert [b.tokens for b in measured.buckets] == [64, 64, 32, 16]
    assert measured.stages == ("vision", "selection", "prefill", "decode", "other")
    for bucket in measured.buckets:
        assert {len(times) for times in bucket.samples_ms.values()} == {3}
        assert bucket.memory_mb > 0
    assert measured.dense.samples_ms["selection"].max() == 0.0
    assert measured.bucket(0.25).samples_ms["selection"].min() > 0.0
    assert measured.bucket(0.25).kept == {"decoder.3": 16}


def test_it_names_what_was_measured_and_on_what(measured: Profile) -> None:
    subject = measured.subject
    assert (subject.policy, subject.recipe, subject.device) == ("tiny", "dual_level", "cpu")
    assert (subject.dtype, subject.attention) == ("float32", "sdpa")
    assert subject.threads == torch.get_num_threads()
    assert {"processor", "torch", "transformers", "clocks_mhz"} <= set(measured.machine)


def test_the_same_policy_passes_the_check_and_other_weights_do_not(
    policy: str, measured: Profile
) -> None:
    settings = measure.ProfileConfig(policy)
    same = measure.subject_of(build.build_adapter(policy), settings)
    measured.check(replace(same, commit=measured.subject.commit))
    seeded = measure.ProfileConfig(policy, overrides=["seed=3"])
    other = measure.subject_of(build.build_adapter(policy, ["seed=3"]), seeded)
    assert other.weights_hash != same.weights_hash
    with pytest.raises(ConfigError, match="policy config whose hash"):
        measured.check(other)


def test_where_a_policy_runs_is_no_part_of_its_hash(policy: str) -> None:
    plain, moved = (
        measure.subject_of(
            build.build_adapter(policy, given), measure.ProfileConfig(policy, overrides=given)
        )
        for given in ([], ["device=cpu", "dtype=bfloat16"])
    )
    assert plain.config_hash == moved.config_hash
    assert (plain.dtype, moved.dtype) == ("float32", "bfloat16")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made, path = profile(rounds=7), tmp_path / "deep" / "p.json"
    made.save(path, latency_model={"any": 1})
    back = Profile.load(path, SUBJECT)
    assert back.subject == made.subject
    assert back.stages == made.stages
    for ours, theirs in zip(made.buckets, back.buckets, strict=True):
        np.testing.assert_allclose(ours.total_ms(), theirs.total_ms(), rtol=1e-4)
        assert (ours.kept, ours.tokens) == (theirs.kept, theirs.tokens)
    assert not list(path.parent.glob("*.part"))
    assert json.loads(path.read_text())["latency_model"] == {"any": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "other"}, "policy tiny, and other is to be run"),
        ({"weights_hash": "dead"}, "weights whose hash is beef"),
        ({"config_hash": "dead"}, "config whose hash"),
        ({"recipe": "fastv"}, "recipe dual_level, and fastv"),
        ({"recipe_hash": "dead"}, "a recipe whose hash is f00d"),
        ({"cut_layer": 3}, "cut layer 2, and 3"),
        ({"dtype": "bfloat16"}, "dtype float32, and bfloat16"),
        ({"threads": 1}, "CPU threads 2, and 1"),
        ({"device": "cuda"}, "device cpu"),
        ({"attention": "eager"}, "attention kernel sdpa"),
    ],
)
def test_a_profile_of_something_else_is_refused(change, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        profile(rounds=2).check(replace(SUBJECT, **change))


def test_another_device_may_stand_for_itself_but_not_for_another_policy() -> None:
    made = profile(rounds=2)
    now = replace(SUBJECT, device="cuda", dtype="bfloat16", threads=16, attention="flash")
    assert made.check(now, other_device=True) == ()
    with pytest.raises(ConfigError, match="recipe"):
        made.check(replace(now, recipe="fastv"), other_device=True)


def test_another_commit_is_told_and_refused_on_demand(tmp_path: Path) -> None:
    made, now = profile(rounds=2), replace(SUBJECT, commit="def456")
    [said] = made.check(now)
    assert "abc123" in said
    assert "def456" in said
    made.save(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="abc123"):
        Profile.load(tmp_path / "p.json", now, commit="refuse")
    changed = replace(SUBJECT, commit="abc123+changes")
    [said] = replace(made, subject=changed).check(changed)  # need not be the same changes
    assert "abc123+changes" in said
    with pytest.raises(ConfigError, match="choose warn, refuse or ignore"):
        made.check(now, commit="never")


def _broken(tmp_path: Path, change) -> Path:
    path = tmp_path / "p.json"
    profile(rounds=3).save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(version=9), "version 9 is unknown"),
        (lambda d: d["buckets"][2]["samples_ms"].pop("prefill"), "0.75: stage 'prefill' is miss"),
        (lambda d: d["buckets"][1]["samples_ms"].pop("head"), "stage 'head' is missing"),
        (lambda d: d["buckets"][1]["samples_ms"]["head"].pop(), "as many times"),
        (lambda d: d["buckets"][1]["samples_ms"]["head"].__setitem__(0, -1.0), "0 ms or more"),
        (lambda d: d["subject"].pop("dtype"), "'dtype' is missing"),
        (lambda d: d["buckets"].pop(0), "first bucket is not dense"),
        (lambda d: d.update(buckets=3), "another form"),
        (lambda d: d["stages"].remove("prefill"), "stage 'prefill' is missing"),
        (lambda d: d["buckets"][1].update(tokens=10**6), "keeps 1000000 of"),
        (lambda d: d.update(scaled_by="slow"), "another form"),
        (
            lambda d: [
                b["samples_ms"].update({s: [t] for s, t in b["samples_ms"].items()})
                for b in d["buckets"]
            ],
            "one list each",
        ),
    ],
)
def test_a_broken_file_gets_one_sentence(tmp_path: Path, change, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Profile.load(_broken(tmp_path, change))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="vla-prune profile"):
        Profile.load(tmp_path / "none.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as JSON"):
        Profile.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[1]")
    with pytest.raises(ConfigError, match="version None"):
        Profile.load(tmp_path / "p.json")


def test_a_slower_device_is_slower_in_every_stage() -> None:
    made = profile(rounds=3)
    slow = made.scaled(2.0).scaled(1.5)
    assert slow.scaled_by == 3.0
    for ours, theirs in zip(slow.buckets, made.buckets, strict=True):
        for stage in made.stages:
            np.testing.assert_allclose(ours.samples_ms[stage], 3.0 * theirs.samples_ms[stage])
    with pytest.raises(ConfigError, match="factor 0"):
        made.scaled(0.0)


def test_a_bucket_that_was_not_measured_is_refused_with_what_there_is() -> None:
    made = profile(rounds=2)
    assert made.bucket(1.0, "dense") is made.dense
    assert [b.keep_ratio for b in made.ladder] == list(RATIOS)
    with pytest.raises(ConfigError, match="was not measured; there is dense 1"):
        made.bucket(0.3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buckets": ()}, "at least one"),
        ({"buckets": (0.5, 0.5)}, "different keep ratios"),
        ({"buckets": (1.5,)}, r"in \(0, 1\]"),
        ({"rounds": 0}, "0 rounds"),
        ({"rounds": 10**6}, "give 1 to 2000"),
        ({"recipe": "dense"}, "has no buckets"),
        ({"threads": -1}, "threads -1; give 1 or more, or 0"),
    ],
)
def test_bad_settings_get_one_sentence(options, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measure.ProfileConfig("any", **options)
    with pytest.raises(ConfigError, match="--buckets"):
        measure.keep_ratios("1.0,half")


def test_a_recipe_by_path_is_named_as_it_was_asked_for(policy: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((config.configs_folder() / "recipe" / "dual_level.yaml").read_text())
    made = measure.measure(
        measure.ProfileConfig(policy, str(mine), buckets=(0.5,), rounds=1, warmup=0)
    )
    assert made.subject.recipe == str(mine) == made.ladder[0].recipe
    assert made.subject.recipe_hash == recipe_hash("dual_level")
    build.build_recipe(made.subject.recipe, 0.5)
    mine.write_text(mine.read_text().replace("share: 0.75", "share: 0.5"))
    assert recipe_hash(str(mine)) != made.subject.recipe_hash


def test_what_a_bucket_keeps_is_told_by_a_call_that_cuts(policy: str, tmp_path: Path) -> None:
    """The last call looks at everything again, and keeps all."""
    mine = tmp_path / "mine.yaml"
    shipped = (config.configs_folder() / "recipe" / "dual_level.yaml").read_text()
    mine.write_text(shipped.replace("window: 3", "window: 1, refresh: 3"))
    for rounds in (1, 2, 3, 4):
        settings = measure.ProfileConfig(
            policy, str(mine), buckets=(0.5,), rounds=rounds, warmup=0
        )
        assert measure.measure(settings).ladder[0].kept == {"decoder.3": 32}


def test_where_a_profile_cannot_be_written_is_told_before_anything_is_measured(
    policy: str, tmp_path: Path
) -> None:
    settings = measure.ProfileConfig(policy, rounds=1)
    with pytest.raises(ConfigError, match="this is a folder; name a file in it"):
        measure.run(settings, tmp_path, pytest.fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="its folder cannot be made"):
        measure.run(settings, tmp_path / "file" / "p.json", pytest.fail)


def test_the_command_writes_the_profile_and_ends_with_json(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    options = ["--buckets", "1.0,0.5,0.25", "--rounds", "2", "--warmup", "0", "--json"]
    told = CliRunner().invoke(cli.app, ["profile", policy, "--out", str(path), *options])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout.splitlines()[-1])
    assert document["profile"] == str(path)
    assert [row["keep_ratio"] for row in document["rows"]] == [1.0, 1.0, 0.5, 0.25]
    assert {"median", "p95", "p99", "jitter", "prefill"} <= set(document["rows"][0])
    assert "prefill" in document["latency_model"]["stages"]
    assert document["notes"] == [
        "the model's error is not known: that takes five buckets or more."
    ]
    assert "eager" in json.loads(path.read_text())["machine"]["calls"]
    assert Profile.load(path).bucket(0.5).rounds == 2
