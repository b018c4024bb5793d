"""Who may import whom (DESIGN.md 7), read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A room may use rooms above it. models stands above adapters: the OpenVLA adapter is typed on it.
ORDER = [
    ("errors", "types"),
    ("fields", "tokens"),
    ("ops", "cost", "clock"),
    ("scorers", "selectors", "budgets", "difficulty"),
    ("pruner",),
    ("models",),
    ("config",),
    ("adapters",),
    ("recon",),
    ("policy", "runtime"),
    ("report",),
    ("build",),
    ("bench", "draw", "doctor", "tune"),
    ("cli",),
]
RANK = {room: place for place, rooms in enumerate(ORDER) for room in rooms}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            if node.module == "vla_prune":
                found |= {f"vla_prune.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


FILES = sorted((ROOT / "vla_prune").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_uses_only_rooms_above_it(path: Path) -> None:
    parts = path.relative_to(ROOT / "vla_prune").with_suffix("").parts
    if parts == ("__init__",):
        return
    own = RANK[parts[0]]
    for module in imports(path):
        assert not module.startswith(("vla_prune_sim", "rclpy")), f"{path} imports {module}"
        if module.startswith("vla_prune."):
            assert RANK[room(module)] <= own, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_models_and_adapters_know_transformers(path: Path) -> None:
    uses = any(module.split(".")[0] == "transformers" for module in imports(path))
    assert not uses or path.relative_to(ROOT / "vla_prune").parts[0] in (
        "models",
        "adapters",
        "recon",
    )


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "sim").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_imports_torchvision_or_timm(path: Path) -> None:
    assert not {m.split(".")[0] for m in imports(path)} & {"torchvision", "timm"}


@pytest.mark.parametrize(
    "module",
    [f"vla_prune.{n}" for n in ("types", "errors", "runtime", "tune.controller", "tune.latency")],
)
def test_the_robot_side_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_the_simulators_loads_no_simulator() -> None:
    code = "import sys, vla_prune_sim; sys.exit(bool({'libero', 'mujoco'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "folder",
    sorted({p.parent for p in FILES} | {ROOT / "sim", ROOT / "sim" / "libero", ROOT / "configs"}),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_room_has_a_short_readme(folder: Path) -> None:
    readme = folder / "README.md"
    assert readme.is_file(), f"{folder} has no README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 120
