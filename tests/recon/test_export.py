"""ONNX files: they keep what torch keeps, know whose they are, and drive a policy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'vla-prune[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'vla-prune[onnx]'")
pytest.importorskip("onnx", reason="needs onnx: pip install 'vla-prune[onnx]'")

import onnx
import onnxruntime

from tests.models import tiny
from vla_prune import build
from vla_prune.adapters.openvla import OpenVLAAdapter, hashed_words
from vla_prune.build import build_recipe
from vla_prune.errors import (
    CheckpointError,
    ConfigError,
    MissingError,
    ShapeError,
    UnsupportedError,
)
from vla_prune.models import OpenVLA
from vla_prune.ops import topk_indices
from vla_prune.policy import attach
from vla_prune.recon import export as exporting
from vla_prune.recon.bind import load_network
from vla_prune.recon.checkpoint import save_reconstructor
from vla_prune.recon.export import (
    ExportConfig,
    Seeing,
    add_topk,
    export,
    fix_k,
    told,
    write_quantised,
)
from vla_prune.recon.model import ReconConfig, ReconPruner
from vla_prune.recon.ort import OrtAdapter, OrtConfig, OrtVision, open_session, see_by_onnx
from vla_prune.recon.parity import compare, random_images

from .conftest import tiny_adapter

FRAMES = 20
SIZE = tiny.CONV.image_size


@pytest.fixture(scope="module")
def exported(adapter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The tiny pocket policy, in the form that is faster here."""
    folder = tmp_path_factory.mktemp("export")
    settings = ExportConfig(str(folder), "random", frames=FRAMES, threads=1)
    return folder, export(settings, adapter, made={"commit": "abc"})


@pytest.fixture(scope="module")
def vision(adapter, exported) -> OrtVision:
    return OrtVision(exported[0], adapter.encoder(), adapter.model.config.views, threads=1)


@pytest.fixture(scope="module")
def seeing(adapter) -> Seeing:
    return Seeing(adapter.model, load_network("random", adapter), adapter.layout).eval()


def recipe(keep: float, weights: str = "random"):
    scorer = f"cuts=[{{site: projector, scorers: [{{name: foreground, weights: {weights}}}], "
    rest = "selector: topk, budget: {name: shared, keep_ratio: 0.5, floor: 0.0}}]"
    return build_recipe("fastdrive", keep, [scorer + rest])


def topk_graph(n: int = 12) -> onnx.ModelProto:
    """Scores in, scores out, and the top-k behind them."""
    from onnx import TensorProto, helper

    shape = ["batch", n]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["given"], ["scores"])],
            "scores",
            [helper.make_tensor_value_info("given", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)],
        ),
        opset_imports=[helper.make_opsetid("", exporting.OPSET)],
        ir_version=10,
    )
    add_topk(model)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["index"], feed)[0]


@pytest.mark.parametrize("k", [1, 5, 12])
def test_of_equal_scores_the_lower_index_stays_in_both(k: int):
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (50, 12), generator=draw).float()
    expected = topk_indices(scores, k)
    given = scores.numpy()
    assert run(topk_graph(), given=given, k=np.array([k])).tolist() == expected.tolist()
    static = topk_graph()
    fix_k(static, k)
    assert run(static, given=given).tolist() == expected.tolist()
    assert topk_indices(torch.zeros(1, 12), k)[0].tolist() == list(range(k))


def test_onnx_and_torch_keep_the_same_tokens(exported):
    folder, document = exported
    parity = document["parity"]
    assert (parity["frames"], parity["equal"], parity["passed"]) == (FRAMES, FRAMES, True)
    assert parity["first"] is None
    assert set(parity["overlap"].values()) == {1.0}
    assert json.loads((folder / "export.json").read_text()) == document
    written = {path.name for path in folder.glob("*.onnx")}
    assert written == set(document["files"].values())
    assert f"same tokens as torch on {FRAMES} of {FRAMES}" in told(document)
    assert "weights are random" in told(document)
    failed = {**document, "parity": {**parity, "passed": False}}
    assert "by others: FAILED" in told(failed)
    assert "int8 is not asked to be equal" in told({**failed, "quantise": "int8"})
    assert document["commit"] == "abc"


def test_files_say_what_they_are(adapter, exported):
    folder, document = exported
    for k, name in document["files"].items():
        props = onnx.load(folder / name).metadata_props
        about = {prop.key.removeprefix("vla_prune."): prop.value for prop in props}
        assert json.loads(about["encoder"])["fingerprint"] == adapter.encoder().fingerprint
        assert about["k"] == k
        assert "of the time of input" in about["k_chosen"]
        assert "lower index" in about["ties"]
        assert json.loads(about["kept"]) == {"0.5": 16, "0.25": 8, "0.125": 4}


def test_any_batch_gives_torchs_tokens_and_scores(seeing, vision, close):
    for batch in (1, 3):
        images = random_images(batch, 2, SIZE, seed=5)
        seen = vision.see(images.numpy(), 8)
        with torch.inference_mode():
            encoded, scores = seeing(images)
        close(seen.encoded, encoded, "ort")
        close(seen.scores, scores, "ort")
        assert seen.index.tolist() == topk_indices(scores, 8).tolist()


def test_a_policy_may_see_by_onnx_and_act_by_torch(adapter, vision, close):
    observations = [adapter.example_observation(seed) for seed in range(2)]
    chunks = []
    for host in (adapter, OrtAdapter(adapter, vision)):
        with attach(recipe(0.25), host) as policy:
            chunks.append(policy.act(observations, [policy.new_state() for _ in observations]))
    images = adapter.images(observations).numpy()
    index = vision.see(images, 8).index
    for row, (plain, ours) in enumerate(zip(*chunks, strict=True)):
        assert ours.kept["projector"].tolist() == plain.kept["projector"].tolist()
        assert ours.kept["projector"].tolist() == index[row].tolist()
        close(ours.actions, plain.actions, "ort")


def test_a_policy_config_may_name_an_export(exported, tmp_path: Path, monkeypatch, close):
    monkeypatch.setitem(build.ADAPTERS, "tiny", "tests.recon.conftest:built")
    path, chunks = tmp_path / "policy.yaml", []
    for line in ("", f"onnx: {exported[0]}\n", f"onnx: {{folder: {exported[0]}, threads: 1}}\n"):
        path.write_text("adapter: tiny\nprompt_layer: 0\n" + line)
        host = build.build_adapter(str(path))
        assert isinstance(host, OrtAdapter) == bool(line)
        assert host.prompt_layer == 0
        with attach(recipe(0.25), host) as policy:
            chunks.append(policy.act_one(host.example_observation(0), policy.new_state()))
    for ours in chunks[1:]:
        assert ours.kept["projector"].tolist() == chunks[0].kept["projector"].tolist()
        close(ours.actions, chunks[0].actions, "ort")
    path.write_text(f"adapter: tiny\nonnx: {{folder: {exported[0]}, thread: 1}}\n")
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        build.build_adapter(str(path))
    with pytest.raises(UnsupportedError, match="pi0 cannot see by ONNX Runtime"):
        see_by_onnx(SimpleNamespace(name="pi0"), OrtConfig(str(exported[0])))


@pytest.mark.slow
def test_vision_transformers_with_one_file_a_budget(tmp_path: Path):
    torch.manual_seed(0)
    host = OpenVLAAdapter(OpenVLA(tiny.OFT), hashed_words)
    (tmp_path / "vision_k9.onnx").write_bytes(b"of an earlier export")
    settings = ExportConfig(
        str(tmp_path), "random", (0.5, 0.25), k="static", frames=FRAMES, threads=1
    )
    document = export(settings, host)
    assert document["parity"]["equal"] == FRAMES
    assert document["files"] == {"8": "vision_k8.onnx", "16": "vision_k16.onnx"}
    assert {p.name for p in tmp_path.glob("*.onnx")} == set(document["files"].values())
    vision = OrtVision(tmp_path, host.encoder(), host.model.config.views, threads=1)
    images = random_images(2, 2, 28, seed=0).numpy()
    assert vision.see(images).index.shape == (2, 8)
    assert vision.see(images, 16).index.shape == (2, 16)
    with pytest.raises(ShapeError, match="9 tokens are no budget of this export, it has 8, 16"):
        vision.see(images, 9)


@pytest.mark.parametrize("quantise", ["int8", "fp16"])
def test_quantised_scores_are_near_and_smaller(quantise: str, exported, seeing, tmp_path: Path):
    folder, document = exported
    source = folder / next(iter(document["files"].values()))
    write_quantised(source, tmp_path / "small.onnx", quantise)
    session, _ = open_session(tmp_path / "small.onnx", "cpu", 1)
    images = random_images(1, 2, SIZE, seed=0)
    feed = {"images": images.numpy(), "k": np.array([8])}
    names = {entry.name for entry in session.get_inputs()}
    scores = session.run(["scores"], {k: v for k, v in feed.items() if k in names})[0]
    with torch.inference_mode():
        expected = seeing(images)[1].numpy()
    assert not np.array_equal(scores, expected)
    assert np.corrcoef(scores[0], expected[0])[0, 1] > 0.9
    assert (tmp_path / "small.onnx").stat().st_size < source.stat().st_size


def test_the_check_sees_another_networks_choice(vision, seeing):
    def upside_down(images):
        encoded, scores = seeing(images)
        return encoded, -scores

    parity = compare(upside_down, vision, {0.25: 8}, 3)
    assert (parity["equal"], parity["different"]) == (0, 3)
    assert parity["score_correlation"] < -0.9
    assert parity["first"]["frame"] == 0
    assert len(parity["first"]["only_torch"]) == len(parity["first"]["only_onnx"]) > 0


def test_swaps_within_rounding_are_counted_apart(vision, seeing):
    """Two tokens at the edge, made equal to far below rounding, and then swapped."""

    def swapped(images):
        encoded, scores = seeing(images)
        order = scores[0].sort(descending=True).indices
        edge = scores[0, order[7]]
        scores[0, order[8]] = edge + 1e-6 * scores.std()
        return encoded, scores

    parity = compare(swapped, vision, {0.25: 8}, 3)
    assert parity["different"] == 0
    assert parity["rounding"] == 3
    assert not parity["passed"]
    assert parity["overlap"]["0.25"] == pytest.approx(7 / 8)


def test_the_networks_device_and_dtype_can_be_others_than_the_policys(adapter):
    """As on a GPU, from where everything that is exported comes to the CPU."""
    half = torch.nn.Linear(1, 1, device="meta", dtype=torch.float16)
    away = SimpleNamespace(device=torch.device("meta"), encoder=adapter.encoder, model=half)
    network = load_network("random", away, torch.device("cpu"), torch.float32)
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("cpu", torch.float32)}
    elsewhere = load_network("random", away)
    assert {(p.device.type, p.dtype) for p in elsewhere.parameters()} == {("meta", torch.bfloat16)}


def test_another_policy_is_refused(adapter, exported):
    folder, _ = exported
    views = adapter.model.config.views
    with pytest.raises(CheckpointError, match=r"fingerprint .* run 'vla-prune export' for this"):
        OrtVision(folder, tiny_adapter(seed=1).encoder(), views)
    with pytest.raises(CheckpointError, match="with views image, wrist, this one has wrist"):
        OrtVision(folder, adapter.encoder(), views[::-1])


def test_a_recipe_of_other_weights_is_refused(adapter, vision, tmp_path: Path):
    torch.manual_seed(3)
    other = ReconPruner(ReconConfig(16, ffn=24, heads=2, kv_heads=1))
    save_reconstructor(tmp_path / "other", other, adapter.encoder())
    with (
        pytest.raises(CheckpointError, match="export again with those weights"),
        attach(recipe(0.25, str(tmp_path / "other")), OrtAdapter(adapter, vision)),
    ):
        pass


def test_what_is_no_export_is_refused(adapter, tmp_path: Path):
    encoder, views = adapter.encoder(), adapter.model.config.views
    with pytest.raises(MissingError, match=r"no export\.json; give a folder"):
        OrtVision(tmp_path, encoder, views)
    onnx.save(topk_graph(), tmp_path / "vision.onnx")
    (tmp_path / "export.json").write_text('{"files": {"input": "vision.onnx"}}')
    with pytest.raises(CheckpointError, match="no metadata of ours"):
        OrtVision(tmp_path, encoder, views)
    with pytest.raises(ConfigError, match="threads is -1; give 0 or more"):
        OrtVision(tmp_path, encoder, views, threads=-1)
    whole = (tmp_path / "vision.onnx").read_bytes()
    (tmp_path / "vision.onnx").write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match=r"vision\.onnx is no ONNX file that can run here"):
        OrtVision(tmp_path, encoder, views)
    (tmp_path / "vision.onnx").unlink()
    with pytest.raises(MissingError, match=r"vision\.onnx: no such file"):
        OrtVision(tmp_path, encoder, views)
    for text in ("{}", '{"files": ', "[]", '{"files": 3}'):
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"export\.json names no files"):
            OrtVision(tmp_path, encoder, views)


def test_images_and_budgets_that_do_not_fit_are_refused(vision):
    images = random_images(1, 2, SIZE, seed=0).numpy()
    with pytest.raises(ShapeError, match=r"takes \[B, 2, 3, 48, 48\] of float32"):
        vision.see(images[:, :1], 8)
    with pytest.raises(ShapeError, match="k is 33; give 1 to 32 tokens"):
        vision.see(images, 33)
    with pytest.raises(ShapeError, match="NaN or infinite scores"):
        vision.see(images * np.float32("nan"), 8)


def test_a_provider_that_is_not_here_falls_back_and_says_so(exported, adapter):
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime offers TensorRT")
    folder, _ = exported
    vision = OrtVision(folder, adapter.encoder(), adapter.model.config.views, "tensorrt", 1)
    [note] = vision.notes
    assert "'tensorrt' (TensorrtExecutionProvider) was asked for" in note
    assert f"running on {vision.provider}" in note
    assert "vla-prune[onnx-gpu]" in note
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        OrtVision(folder, adapter.encoder(), adapter.model.config.views, "cuda0")


def test_what_cannot_be_exported_is_refused(adapter, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        ExportConfig("x", quantise="int")
    with pytest.raises(ConfigError, match="threads is -1"):
        ExportConfig("x", threads=-1)
    with pytest.raises(ConfigError, match="frames is 0"):
        ExportConfig("x", frames=0)
    with pytest.raises(UnsupportedError, match="pi0 cannot be exported"):
        export(ExportConfig("x"), SimpleNamespace(name="pi0"))
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(MissingError, match="onnx is not installed; install the extra"):
        export(ExportConfig("x"), adapter)
