"""What this machine has, and the command that brings what it lacks."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One line of ``vla-prune doctor``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """All checks. Imports torch, nothing else that is heavy."""
    return [
        _torch(),
        _package("transformers", "pip install 'vla-prune'"),
        _attention(),
        _gpu(),
        _package("gymnasium", "pip install 'vla-prune[sim]'"),
        _package("hf-libero", "make libero, or pip install 'vla-prune[libero]'", module="libero"),
        _libero_assets(),
        _package("nuscenes-devkit", "pip install 'vla-prune[nuscenes]'", module="nuscenes"),
        _nuscenes_root(),
        _rclpy(),
        _package("onnxruntime", "pip install 'vla-prune[onnx]'"),
    ]


def _package(name: str, remedy: str, module: str | None = None) -> Check:
    found = find_spec(module or name) is not None
    try:
        detail = version(name) if found else "not installed"
    except PackageNotFoundError:
        detail = "importable, version unknown"
    return Check(name, found, detail, "" if found else remedy)


def _torch() -> Check:
    import torch

    threads = torch.get_num_threads()
    detail = f"{torch.__version__}, {threads} threads, Python {platform.python_version()}"
    return Check("torch", True, detail)


def _attention() -> Check:
    """The kernel that dense and pruned runs share."""
    import torch

    if torch.cuda.is_available():
        flash = torch.backends.cuda.flash_sdp_enabled()
        return Check("attention kernel", True, f"sdpa on CUDA, flash {'on' if flash else 'off'}")
    amx = "amx_bf16" in _cpu_flags()
    fast = "bfloat16 (AMX)" if amx else "float32 (no AMX, so bfloat16 is slow here)"
    return Check("attention kernel", True, f"sdpa on CPU; fast dtype {fast}")


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", True, torch.cuda.get_device_name())
    return Check(
        "GPU", False, "no CUDA device; everything runs on the CPU", "install a CUDA build of torch"
    )


def _libero_assets() -> Check:
    name = "VLA_PRUNE_LIBERO_ASSETS"
    given = os.environ.get(name)
    places = [Path(given)] if given else []
    spec = find_spec("libero")
    if spec and spec.submodule_search_locations:
        places.append(Path(next(iter(spec.submodule_search_locations))) / "libero" / "assets")
    places.append(Path.home() / ".cache" / "libero" / "assets")
    for place in places:
        if (place / "scenes").is_dir():
            return Check("LIBERO assets", True, str(place))
    return Check("LIBERO assets", False, "not found", f"set {name} to a folder that holds them")


def _nuscenes_root() -> Check:
    root = os.environ.get("NUSCENES_ROOT")
    if root and any((Path(root) / v).is_dir() for v in ("v1.0-mini", "v1.0-trainval")):
        return Check("nuScenes root", True, root)
    return Check(
        "nuScenes root", False, "not set", "set NUSCENES_ROOT to the folder that holds v1.0-mini"
    )


def _rclpy() -> Check:
    found = find_spec("rclpy") is not None
    detail = os.environ.get("ROS_DISTRO", "importable") if found else "not importable"
    return Check(
        "rclpy", found, detail, "" if found else "source the setup file of a ROS 2 installation"
    )
