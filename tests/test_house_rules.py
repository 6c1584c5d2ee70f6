"""The style guide that fails: layers, torch-free floors, registries, cause pages, generated documents."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nanhunt"
CAUSE_FILES = sorted(p for p in (PACKAGE / "diagnosis" / "causes").glob("*.py") if p.name != "__init__.py")
SECTIONS = [
    "What it looks like",
    "Why training breaks",
    "Evidence",
    "Fix",
    "How it is confirmed",
    "When it is mistaken",
    "References",
]

#: Floor of each module by longest prefix, lowest first. A module imports from its own floor or one below it, by FLOORS.
FLOOR_OF = {
    "nanhunt": "L0",
    "nanhunt.errors": "L0",
    "nanhunt.inert": "L0",
    "nanhunt.interventions": "L0",
    "nanhunt.library": "L0",
    "nanhunt.jsonsafe": "L0",
    "nanhunt.formats": "L0",
    "nanhunt.stats": "T1",
    "nanhunt.stats.tensor_stats": "L1",
    "nanhunt.stats.columns": "L1",
    "nanhunt.trace": "L1",
    "nanhunt.diagnosis": "L2",
    "nanhunt.report": "L2",
    "nanhunt.comparison": "L2",
    "nanhunt.live": "L2",
    "nanhunt.export": "L2",
    "nanhunt.inspection": "L2",
    "nanhunt.inspection.facts": "L1",
    "nanhunt.inspection.state_facts": "L1",
    "nanhunt.inspection.averages": "T1",
    "nanhunt.inspection.differences": "T1",
    "nanhunt.inspection.contents": "T1",
    "nanhunt.inspection.survey": "T1",
    "nanhunt.inspection.scan": "T1",
    "nanhunt.inspection.pages": "T1",
    "nanhunt.inspection.flips": "T1",
    "nanhunt.inspection.moments": "T1",
    "nanhunt.inspection.naming": "T1",
    "nanhunt.inspection.compare": "T1",
    "nanhunt.training": "T1",
    "nanhunt.probes": "T1",
    "nanhunt.recipes": "T1",
    "nanhunt.recipes.recipe": "L0",
    "nanhunt.recipes.catalogue": "L0",
    "nanhunt.replay": "T2",
    "nanhunt.finiteness": "T2",
    "nanhunt.rewind": "T2",
    "nanhunt.gradcheck": "T2",
    "nanhunt.accumulation": "T2",
    "nanhunt.compiled": "T2",
    "nanhunt.raised": "T2",
    "nanhunt.survey": "T2",
    "nanhunt.damage": "T2",
    "nanhunt.bits": "T2",
    "nanhunt.repeat": "T2",
    "nanhunt.precision": "T2",
    "nanhunt.samples": "T2",
    "nanhunt.stall": "T2",
    "nanhunt.stochastic": "T2",
    "nanhunt.verdicts": "T2",
    "nanhunt.facts": "T2",
    "nanhunt.zoom": "T2",
    "nanhunt.culprit": "T2",
    "nanhunt.cut": "T2",
    "nanhunt.saved_call": "T2",
    "nanhunt.bench": "T2",
    "nanhunt.changes": "T2",
    "nanhunt.counterfactual": "T2",
    "nanhunt.recorder": "T2",
    "nanhunt.ranks": "T2",
    "nanhunt.hunt": "T3",
    "nanhunt.demo": "T3",
    "nanhunt.draft": "T3",
    "nanhunt.integrations": "T3",
    "nanhunt.commands": "C",
    "nanhunt.signatures": "C",
    "nanhunt.cli": "C",
    "nanhunt.__main__": "C",
}
MAY_IMPORT = {
    "L0": {"L0"},
    "L1": {"L0", "L1"},
    "L2": {"L0", "L1", "L2"},
    "T1": {"L0", "L1", "T1"},
    "T2": {"L0", "L1", "T1", "T2"},
    "T3": {"L0", "L1", "L2", "T1", "T2", "T3"},
    "C": {"L0", "L1", "L2", "T1", "T2", "T3", "C"},
}
TORCH_FREE = {"L0", "L1", "L2"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in FLOOR_OF and (length > 1 or module in ("nanhunt", "nanhunt.__init__")):
            return FLOOR_OF[name]
    raise AssertionError(f"{module} stands on no floor: add it to FLOOR_OF")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether only for type checking)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in typing_only


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "demo" / "train.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down_or_sideways(path: Path) -> None:
    here = floor(module_name(path))
    for name, typing_only in imports(path):
        if name.split(".")[0] == "nanhunt" and name != "nanhunt" and not typing_only:
            assert floor(name) in MAY_IMPORT[here], f"{module_name(path)} ({here}) imports {name} ({floor(name)})"
        if name.split(".")[0] == "torch":
            assert here not in TORCH_FREE, f"{module_name(path)} ({here}) imports torch"


@pytest.mark.parametrize("path", CAUSE_FILES, ids=lambda p: p.stem)
def test_causes_do_not_import_one_another(path: Path) -> None:
    assert not [n for n, _ in imports(path) if n.startswith("nanhunt.diagnosis.causes")]


def test_the_torch_free_floors_import_without_torch() -> None:
    modules = [module_name(p) for p in SOURCES if floor(module_name(p)) in TORCH_FREE]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_cause_file_is_registered_once_under_its_own_name() -> None:
    from nanhunt.diagnosis.causes import CAUSES

    slugs = [c.slug for c in CAUSES]
    assert len(slugs) == len(set(slugs))
    assert {s.replace("-", "_") for s in slugs} == {p.stem for p in CAUSE_FILES}


def test_the_catalogue_is_the_contracts_thirty_causes() -> None:
    from nanhunt.diagnosis.causes import CAUSES

    assert {c.slug for c in CAUSES} == set(
        """
        activation-overflow gradient-overflow gradient-underflow fp8-saturation mask-fill-overflow epsilon-underflow
        lost-update low-precision-accumulation empty-reduction fully-masked-softmax zero-denominator singular-gradient
        where-trap domain-error naive-exp-log bad-sample bad-target learning-rate-too-high gradient-explosion
        adam-v-collapse optimizer-state attention-logit-growth output-logit-drift bad-init poisoned-state
        faulty-backward training-loop-bug rank-divergence hardware-fault nondeterminism
        """.split()
    )


@pytest.mark.parametrize("path", CAUSE_FILES, ids=lambda p: p.stem)
def test_a_causes_page_has_its_sections_in_order(path: Path) -> None:
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    headings = [lines[i] for i in range(len(lines) - 1) if len(lines[i + 1]) >= 3 and not lines[i + 1].strip("-")]
    assert headings == SECTIONS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_file_opens_with_a_sentence_and_keeps_its_functions_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} does not say what it is for"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in ("train_step", "replay"):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


SCRIPTS = sorted((PACKAGE / "report" / "html" / "assets").glob("*.js"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_a_script_opens_with_a_sentence_and_keeps_its_functions_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("// "), f"{path} does not say what it is for"
    assert len(lines) <= 300
    for start, line in enumerate(lines):
        if "=>" in line and line.endswith(("{", "(", "[")):
            # it ends with the first closing bracket that stands as far in as its first line
            margin = line[: len(line) - len(line.lstrip())]
            ends = tuple(margin + bracket for bracket in "})]")
            end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(ends))
            assert end - start < 60, f"{path.name}:{start + 1} has {end - start + 1} lines"


def test_generated_documents_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
