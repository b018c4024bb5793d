"""Vision encoder, reconstructor and top-k as ONNX files, checked against torch once written.

The encoder and the scores come from ``torch.onnx.export(dynamo=True)``, which captures shapes
and a free batch size with ``torch.export``; the older exporter is deprecated in torch 2.13. The
top-k is put behind them by hand, because its rule for equal scores must be known: ONNX has the
lower index first, and so has ``ops.topk_indices``. Knows no policy call; that is ``ort``.

A folder holds ``export.json``, which names the files, and one of

- ``vision.onnx``: ``images`` and ``k`` in; ``encoded``, ``scores`` and ``index`` out;
- ``vision_kK.onnx`` for every budget: the same with ``K`` inside.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vla_prune.adapters.encoder import fingerprint
from vla_prune.adapters.openvla import OpenVLAAdapter
from vla_prune.budgets import SharedBudget
from vla_prune.errors import (
    ConfigError,
    MissingError,
    UnsupportedError,
    check_least,
    did_you_mean,
)
from vla_prune.recon.bind import RANDOM, load_network
from vla_prune.recon.ort import FIELDS, INDEX, INSTALL, KIND, OrtVision, open_session
from vla_prune.recon.parity import TOLERATED, compare, random_images
from vla_prune.tokens import TokenLayout, grid_coordinates

if TYPE_CHECKING:
    import onnx

QUANTISE = ("none", "int8", "fp16")
K = ("auto", "input", "static")
TIES = "of equal scores the lower index stays"
LARGE = 1_500_000_000  # bytes of weights above which they stand in a file of their own
OPSET = 18  # what TensorRT 8.6 and later read
ROUNDS = 20
# One file that serves all budgets is worth this much of its time.
WORTH = 0.02


@dataclass(frozen=True)
class ExportConfig:
    """What is exported.

    Attributes:
        out: folder, which may be new.
        weights: of the reconstructor, as the scorer ``foreground`` takes them.
        keep_ratios: the budgets.
        k: how many stay is an ``input``, or ``static`` in one file for each budget; ``auto`` times
            both here and takes static ones if they are more than 2% faster. TensorRT wants
            ``static``.
        quantise: ``int8`` is ONNX Runtime's dynamic quantisation of the matrix products
            (convolutions stay as they are); ``fp16`` has inputs and outputs in float32.
        frames: random ones to compare with torch on.
        provider: of the comparison: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: of it; 0 leaves the choice to ONNX Runtime.
    """

    out: str
    weights: str | None = None
    keep_ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    k: str = "auto"
    quantise: str = "none"
    frames: int = 1000
    provider: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not offered."""
        for field, known in (("k", K), ("quantise", QUANTISE)):
            if getattr(self, field) not in known:
                raise did_you_mean("export", field, getattr(self, field), known)
        if not self.keep_ratios:
            raise ConfigError("export: no budgets; give keep ratios in (0, 1], such as 0.5,0.25.")
        check_least("export", 1, frames=self.frames)
        check_least("export", 0, threads=self.threads)


class Seeing(nn.Module):
    """Images to the encoder's tokens and their foreground scores, as the policy computes them."""

    def __init__(self, vision: nn.Module, network: nn.Module, layout: TokenLayout) -> None:
        super().__init__()
        self.vision, self.network, self.views = vision, network, len(layout.views)
        self.register_buffer("places", grid_coordinates(layout), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, V, 3, H, W]`` in [0, 1] -> ``[B, N, E]``, ``[B, N]``."""
        encoded = self.vision.vision_features(images)
        places = self.places.expand(encoded.shape[0], -1, -1)
        return encoded, self.network(encoded, places, self.views)


def export(
    settings: ExportConfig,
    adapter: Any,
    report: Callable[[float], None] | None = None,
    made: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the files and compare them with torch.

    Args:
        settings: what and where.
        adapter: of the policy. Its vision encoder is moved to the CPU in float32.
        report: called with the share of frames compared, 0 to 1.
        made: where and by what, as results files name it (`vla_prune.report.provenance`).

    Returns:
        What ``export.json`` holds: the files, where they came from, and ``parity``.

    Raises:
        MissingError: a package or the reconstructor's weights are not there.
        UnsupportedError: the policy is of a family whose encoder cannot be exported.
    """
    for package in ("onnxruntime", "onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingError(f"export: {package} is not installed; {INSTALL}.")
    if not isinstance(adapter, OpenVLAAdapter):
        raise UnsupportedError(
            f"export: {adapter.name} cannot be exported; only policies of adapter 'openvla' can, "
            "pocket policies among them."
        )
    import onnx

    model, out = adapter.model, Path(settings.out)
    model.towers.to("cpu", torch.float32)
    network = load_network(settings.weights, adapter, torch.device("cpu"), torch.float32)
    seeing = Seeing(model, network, adapter.layout).eval()
    kept = tokens_kept(settings.keep_ratios, adapter.layout)
    size = model.config.towers[0].image_size
    about = {
        "kind": KIND,
        "encoder": asdict(adapter.encoder()),
        "reconstructor": fingerprint(network.state_dict().items()),
        "weights": settings.weights or "shipped",
        "views": [view.name for view in adapter.layout.views],
        "image_size": size,
        "kept": {str(ratio): k for ratio, k in kept.items()},
        "quantise": settings.quantise,
        "ties": TIES,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)
    path = out / "vision.onnx"
    examples = random_images(2, len(adapter.layout.views), size, seed=0)
    _write_graph(seeing, examples, path, settings.quantise)
    graph = onnx.load(path, load_external_data=False)
    add_topk(graph)
    files = _choose(settings, graph, about, path, sorted(set(kept.values())), examples[:1])
    document = {**(made or {}), **about, "files": files}
    (out / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    vision = OrtVision(out, adapter.encoder(), about["views"], settings.provider, settings.threads)
    document["parity"] = compare(seeing, vision, kept, settings.frames, report)
    document |= {"provider": vision.provider, "notes": list(vision.notes)}
    (out / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def told(document: Mapping[str, Any]) -> str:
    """What :func:`export` did, for people."""
    parity = document["parity"]
    verdict = "passed" if parity["passed"] else "FAILED"
    if document["quantise"] != "none":
        verdict = f"{document['quantise']} is not asked to be equal"
    lines = [
        f"wrote {', '.join(document['files'].values())}; reconstructor: {document['weights']}",
        f"parity on {document['provider']}: the same tokens as torch on {parity['equal']} of "
        f"{parity['frames']} random frames at all budgets; {parity['rounding']} differ by tokens "
        f"whose scores are equal to rounding (at most {TOLERATED:.0%} of the frames may), "
        f"{parity['different']} by others: {verdict}",
        "overlap of kept tokens: "
        + ", ".join(f"{share:.6g} at {ratio}" for ratio, share in parity["overlap"].items())
        + f"; correlation of scores {parity['score_correlation']:.6g}",
    ]
    if document["weights"] == RANDOM:
        lines.insert(1, "the reconstructor's weights are random: for speed and parity alone")
    if parity["first"] is not None:
        lines.append(
            "first difference: frame {frame} at {keep_ratio}: torch keeps {only_torch}, ONNX "
            "{only_onnx}; the scores are {gap:.2g} standard deviations apart".format(
                **parity["first"]
            )
        )
    return "\n".join(lines)


def tokens_kept(keep_ratios: Sequence[float], layout: TokenLayout) -> dict[float, int]:
    """How many tokens stay of all views at each ratio: what the recipe ``fastdrive`` keeps."""
    return {ratio: sum(SharedBudget(ratio, 0.0).keep(layout)) for ratio in keep_ratios}


def _write_graph(seeing: Seeing, examples: Tensor, path: Path, quantise: str) -> None:
    """Encoder and scores; ``images`` with a free batch size."""
    with torch.no_grad():
        program = torch.onnx.export(
            seeing,
            (examples,),
            dynamo=True,
            input_names=["images"],
            output_names=["encoded", "scores"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            verbose=False,
        )
    large = sum(tensor.nbytes for tensor in seeing.state_dict().values()) > LARGE
    if quantise == "none":
        program.save(path, external_data=large)
        return
    with TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        program.save(plain, external_data=large)
        write_quantised(plain, path, quantise, large)


def write_quantised(plain: Path, path: Path, quantise: str, large: bool = False) -> None:
    """An ONNX file in ``int8`` or ``fp16``, with weights in a file of their own if ``large``."""
    import onnx

    if quantise == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        data = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
        onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), path, **data)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        plain,
        path,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        use_external_data_format=large,
    )


def add_topk(model: onnx.ModelProto) -> None:
    """Put an input ``k`` and an output ``index`` on a graph with an output ``scores``, in place.

    ``index`` is ``[B, k]`` int64, ascending. Of equal scores the lower index stays: the operator
    TopK of ONNX promises that. Indices are sorted as floats, which hold them exactly and which
    every provider sorts.
    """
    from onnx import TensorProto, helper

    graph, node = model.graph, helper.make_node
    scores = next(output for output in graph.output if output.name == "scores")
    batch = scores.type.tensor_type.shape.dim[0]
    graph.node.extend(
        [
            node("TopK", ["scores", "k"], ["best_scores", "best"], axis=-1, largest=1, sorted=1),
            node("Cast", ["best"], ["best_float"], to=TensorProto.FLOAT),
            node("TopK", ["best_float", "k"], ["raster", "_"], axis=-1, largest=0, sorted=1),
            node("Cast", ["raster"], ["index"], to=TensorProto.INT64),
        ]
    )
    graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    rows = batch.dim_param or batch.dim_value
    graph.output.append(helper.make_tensor_value_info("index", TensorProto.INT64, [rows, "k"]))


def fix_k(model: onnx.ModelProto, k: int) -> None:
    """Make the input ``k`` a constant, in place."""
    from onnx import TensorProto, helper

    graph = model.graph
    graph.input.remove(next(entry for entry in graph.input if entry.name == "k"))
    graph.initializer.append(helper.make_tensor("k", TensorProto.INT64, [1], [k]))
    index = next(output for output in graph.output if output.name == "index")
    index.type.tensor_type.shape.dim[1].dim_value = k


def _choose(
    settings: ExportConfig,
    graph: onnx.ModelProto,
    about: Mapping[str, Any],
    path: Path,
    ks: Sequence[int],
    images: Tensor,
) -> dict[str, str]:
    """Write the form that is wanted, or the faster one: ``{"input" or K: file}``."""
    import onnx

    single = {"input": path}
    fixed = {str(k): path.with_name(f"vision_k{k}.onnx") for k in ks}
    write = {"input": (single,), "static": (fixed,), "auto": (single, fixed)}[settings.k]

    def save(files: Mapping[str, Path], why: str) -> None:
        for k, file in files.items():
            copy = type(graph)()
            copy.CopyFrom(graph)
            if k != "input":
                fix_k(copy, int(k))
            describe(copy, {**about, "k": k, "k_chosen": why})
            onnx.save(copy, file)

    why = f"{settings.k} was asked for"
    for files in write:
        save(files, why)
    chosen = write[0]
    if settings.k == "auto":
        share, provider = _static_share(single, fixed, images, settings)
        chosen = fixed if share < 1.0 - WORTH else single
        save(chosen, f"static took {share:.3f} of the time of input on {provider}")
    for file in (path, *path.parent.glob("vision_k*.onnx")):
        if file not in chosen.values():
            file.unlink(missing_ok=True)
    return {k: file.name for k, file in chosen.items()}


def describe(model: onnx.ModelProto, about: Mapping[str, Any]) -> None:
    """Write what a session can read back, in place."""
    from onnx import helper

    told = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    assert told.keys() >= set(FIELDS)
    helper.set_model_props(model, {f"vla_prune.{key}": value for key, value in told.items()})


def _static_share(
    single: dict[str, Path],
    fixed: dict[str, Path],
    images: Tensor,
    settings: ExportConfig,
) -> tuple[float, str]:
    """Median time of a call with ``k`` inside over that with it as an input; and the provider."""
    made = {
        k: open_session(path, settings.provider, settings.threads)[0]
        for k, path in (single | fixed).items()
    }
    one, pictures = made.pop("input"), images.numpy()
    taken: dict[str, list[float]] = {"input": [], "static": []}
    for turn in range(ROUNDS + 3):
        for k, session in made.items():
            wanted = torch.tensor([int(k)]).numpy()
            calls = (("input", one, {"images": pictures, "k": wanted}),
                     ("static", session, {"images": pictures}))  # fmt: skip
            for form, run, feed in calls:
                start = time.perf_counter()
                run.run(["index"], feed)
                if turn >= 3:
                    taken[form].append(time.perf_counter() - start)
    share = statistics.median(taken["static"]) / statistics.median(taken["input"])
    return share, one.get_providers()[0]
