"""The imports point one way: two leaves, one root; stages meet only in files; nothing imports the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {"ingest", "restore", "select", "pack", "report", "export", "train_idm", "evaluate"}
#: retrain and evaluate, the stages of a proof
STAGES |= {"proof.jobs", "proof.scores"}


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", modules("idm_core"), ids=lambda p: p.name)
def test_the_model_knows_no_files_and_no_cluster(path: Path) -> None:
    assert not roots(imports_of(path)) & {"ray", "click", "pyarrow", "webdataset", "manifests", "pipelines"}


@pytest.mark.parametrize("path", modules("manifests"), ids=lambda p: p.name)
def test_the_contract_knows_no_tensors_and_no_cluster(path: Path) -> None:
    assert not roots(imports_of(path)) & {"ray", "torch", "torchvision", "idm_core", "pipelines", "click"}
    assert "webdataset" not in roots(imports_of(path, top_level_only=True))


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_meet_only_in_files(stage: str) -> None:
    others = {f"pipelines.{name}" for name in STAGES - {stage}}
    path = ROOT / "pipelines" / f"{stage.replace('.', '/')}.py"
    assert not imports_of(path) & others


def test_nothing_imports_the_command_line() -> None:
    for package in ("idm_core", "manifests", "pipelines"):
        for path in modules(package):
            if path == ROOT / "pipelines" / "__main__.py" or ROOT / "pipelines" / "cli" in path.parents:
                continue
            assert not {n for n in imports_of(path) if n == "pipelines.cli" or n.startswith("pipelines.cli.")}, path


def test_commands_know_neither_their_group_nor_each_other() -> None:
    shared = {"options", "execution"}
    for path in sorted((ROOT / "pipelines" / "cli").glob("*.py")):
        imported = {name.split(".")[2] for name in imports_of(path) if name.startswith("pipelines.cli.")}
        assert path.stem == "__init__" or imported <= shared - {path.stem}, path


@pytest.mark.parametrize("command", ["status", "verify"])
def test_status_and_verify_load_neither_torch_nor_ray(command: str, tmp_path: Path) -> None:
    program = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import cli; "
        f"CliRunner().invoke(cli, [{command!r}, {str(tmp_path)!r}]); "
        "print(sorted({'torch', 'ray', 'webdataset', 'pydantic', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
