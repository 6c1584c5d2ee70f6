"""Every command line of README and docs/ is one that the tools take; those that cost nothing are run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer

from nanhunt.cli import app, main
from nanhunt.demo import FAULTS
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.export.kinds import FILES, TRACKERS
from nanhunt.library import library
from nanhunt.recipes.catalogue import RECIPES
from tests.browser.kept import trace_of
from tests.docs.pages import PAGES, ROOT, code_spans, command_lines

GROUP = typer.main.get_command(app)
COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None]
#: What a value of an option, or an argument, may be, where the command itself looks only when it is run. In capitals it is
#: a placeholder.
CHOICES = {
    "trial": {i.name for i in library()},
    "precision": {r.name for r in RECIPES},
    "to": {*(f.name for f in FILES), *TRACKERS},
    "fault": {f.name for f in FAULTS},
    "cause": {c.slug for c in CAUSES},
}
#: Lines that print something of the package, or read one trace and small checkpoints, in a moment; without a placeholder.
CHEAP = re.compile(
    r"nanhunt (?:(?:explain|formats|trials|inspect|init|report|export|watch)\b(?!.*(?:[A-Z]{3}|--repro|wandb|mlflow|trackio))"
    r"|demo --list|--help|--version)"
)


def written() -> list[tuple[str, str]]:
    """(place, command) of each line that a reader may type."""
    return [(f"{p.relative_to(ROOT)}:{line}", command) for p in PAGES for line, command in command_lines(p)]


def words(command: str) -> list[str]:
    """The words of a line; what stands in square brackets may be left out."""
    return shlex.split(re.sub(r"\[([A-Z_]+)\]", "", command))


def of_nanhunt(command: str) -> list[str] | None:
    """The words behind `nanhunt`, however it is started; None of another program, or where it is only named."""
    found = re.search(r"(?:^|-m )nanhunt (.+)", command)
    arguments = words(found[1]) if found else []
    named_only = len(arguments) == 1 and arguments[0] in COMMANDS
    return None if named_only or not arguments else arguments


def problem(arguments: list[str]) -> str | None:
    """What the command line would say against these words; None where it takes them."""
    try:
        with GROUP.make_context("nanhunt", list(arguments), resilient_parsing=arguments[0] in COMMANDS) as above:
            if arguments[0] not in COMMANDS:
                return None if arguments[0].startswith("-") else f"there is no command {arguments[0]}"
            command = GROUP.get_command(above, arguments[0])  # type: ignore[attr-defined]
            with command.make_context(arguments[0], arguments[1:], parent=above) as context:
                return outside_of_choices(context.params)
    except typer.Exit:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def outside_of_choices(params: dict[str, object]) -> str | None:
    for name, choices in CHOICES.items():
        value = params.get(name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and not str(one).isupper() and one not in choices:
                return f"{name} {one} is none of {sorted(choices)}"
    return None


def test_every_line_of_nanhunt_is_taken_by_its_command_line() -> None:
    lines = [(place, arguments) for place, command in written() if (arguments := of_nanhunt(command))]
    assert len(lines) > 60
    assert not [f"{place} {arguments}: {said}" for place, arguments in lines if (said := problem(arguments))]


def test_the_check_refuses_what_the_command_line_refuses() -> None:
    assert problem(["report", "trace.parquet", "--output", "x.html"])
    assert problem(["report"])
    assert problem(["reprot", "trace.parquet"])
    assert problem(["replay", "ckpt.pt", "--trial", "clip-nrom"])
    assert problem(["replay", "ckpt.pt", "--trial", "clip-norm", "--steps", "40"]) is None


def test_every_file_that_a_line_names_is_there() -> None:
    named = [(place, word) for place, command in written() for word in shlex.split(command)]
    folders = ("benchmarks/", "configs/", "docs/", "nanhunt/", "tests/")
    assert not [f"{place} {w}" for place, w in named if w.startswith(folders) and not (ROOT / w).exists()]


def test_every_script_and_module_is_there_and_has_the_options_of_its_line() -> None:
    for place, command in written():
        if found := re.match(r"python (?:-m ([\w.]+)|(\S+/\S+\.py))(.*)", command):
            module, script, options = found.groups()
            path = ROOT / script if script else source_of(module)
            assert path is not None, f"{place}: no {module or script}"
            text = path.read_text()
            missing = [o for o in re.findall(r" (--[\w-]+)", options) if f'"{o}"' not in text]
            assert not missing, f"{place}: {path} has no {missing}"


def source_of(module: str) -> Path | None:
    if module.split(".")[0] not in ("tests", "benchmarks"):
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None
    place = ROOT.joinpath(*module.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__main__.py") if p.exists()), None)


def test_every_target_of_make_is_there_and_its_arguments_are_heard() -> None:
    makefile = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"(?m)^([a-z-]+):[^=].*\n((?:\t.*\n)*)", makefile))
    for place, command in written():
        if found := re.match(r"make ([a-z-]+)(?: (\w+)=)?", command):
            target, variable = found.groups()
            assert target in rules, f"{place}: make {target}"
            assert variable is None or f"$({variable})" in rules[target], f"{place}: make {target} {variable}="


def test_every_extra_that_is_installed_is_one_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in PAGES:
        for extras in re.findall(r"pip install '(?:nanhunt|\.)\[([\w,]+)\]'", page.read_text()):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), page


def test_every_command_stands_in_the_readme_and_in_the_index_of_commands() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "commands" / "README.md"):
        spans = [span for _, span in code_spans(page)]
        assert not [c for c in COMMANDS if not any(re.match(rf"nanhunt {c}\b", span) for span in spans)], page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a trace and two checkpoints, by the names that the pages use."""
    shutil.copy(trace_of("fp16-overflow"), tmp_path / "trace.parquet")
    for step, name in ((10, "earlier.pt"), (20, "ckpt.pt")):
        torch.manual_seed(step)
        model = torch.nn.Linear(8, 8)
        torch.save({"model": model.state_dict(), "step": step}, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_that_cost_nothing_do_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = (".pt", ".parquet", ".partial")
    cheap = {command for _, command in written() if CHEAP.match(command) and of_nanhunt(command)}
    lines = sorted(c for c in cheap if all((folder / w).exists() for w in words(c) if w.endswith(inputs)))
    assert len(lines) > 15
    for line in lines:
        (folder / "nanhunt.yaml").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", words(line))
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        said = capsys.readouterr()
        assert code == 0 or (code == 1 and "--exit-code" in line), f"{line}: {said.err}"
