"""The user's code: import strings that resolve or say which half failed, and errors that stay the user's."""

import sys
from pathlib import Path

import pytest

from nanhunt.errors import ConfigError, UserCodeError
from nanhunt.training.user_code import call_user, fill_parameters, resolve, user_traceback


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path):
    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_a_module_is_found_beside_the_config(project):
    root = project(nh_train="def build():\n    return 7\n")
    assert resolve("nh_train:build", key="model", root=root)() == 7
    assert sys.path[0] == str(root)


def test_the_root_stands_on_the_path_once(project):
    root = project(nh_train="x = 1\n")
    for _ in range(3):
        resolve("nh_train:x", key="model", root=root)
    assert sys.path.count(str(root)) == 1


def test_dotted_modules_and_attributes_resolve(project):
    root = project(nh_pkg__inner="class A:\n    class B:\n        c = 3\n")
    assert resolve("nh_pkg.inner:A.B.c", key="loss", root=root) == 3


def test_an_installed_module_resolves(tmp_path):
    assert resolve("math:pi", key="data", root=tmp_path) == pytest.approx(3.14159265)


def test_a_file_and_its_module_are_one(project):
    root = project(nh_train="marker = object()\n")
    by_file = resolve("nh_train.py:marker", key="model", root=root)
    assert resolve("nh_train:marker", key="model", root=root) is by_file
    assert resolve(f"{root / 'nh_train.py'}:marker", key="model", root=root) is by_file


def test_a_file_in_another_folder_finds_its_neighbours_and_leaves_the_roots_module_alone(project):
    root = project(
        nh_train="where = 'root'\n", sub__nh_train="from nh_near import where\n", sub__nh_near="where='sub'\n"
    )
    assert resolve("sub/nh_train.py:where", key="model", root=root) == "sub"
    assert resolve("nh_train:where", key="model", root=root) == "root"


def test_a_file_is_run_once(project):
    root = project(**{"sub__nh-train.v2": "marker = object()\n"})
    first = resolve("sub/nh-train.v2.py:marker", key="model", root=root)
    assert resolve("sub/nh-train.v2.py:marker", key="data", root=root) is first


def test_a_file_named_like_a_standard_module_does_not_replace_it(project):
    import random

    root = project(random="mine = True\n")
    assert resolve("random.py:mine", key="data", root=root) is True
    assert sys.modules["random"] is random


def test_two_projects_with_equal_module_names_do_not_mix(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "nh_model.py").write_text(f"who = '{name}'\n")
        (folder / "nh_train.py").write_text("from nh_model import who\n")
    for name in ("a", "b", "a"):
        assert resolve("nh_train:who", key="model", root=tmp_path / name) == name


def test_a_string_without_a_colon_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model: expected 'package\.module:attribute'"):
        resolve("train.build", key="model", root=tmp_path)


def test_a_module_that_is_not_there_is_told_with_the_nearest(project):
    root = project(nh_train="", nh_pkg__models="")
    with pytest.raises(ConfigError, match=r"model: no module 'nh_trian' in .* did you mean 'nh_train'"):
        resolve("nh_trian:build", key="model", root=root)
    with pytest.raises(ConfigError, match=r"did you mean 'nh_pkg\.models'"):
        resolve("nh_pkg.model:build", key="model", root=root)


def test_a_path_without_py_is_told_how_a_path_is_written(project):
    with pytest.raises(ConfigError) as caught:
        resolve("sub/nh_train:build", key="model", root=project(sub__nh_train=""))
    assert "sub/nh_train.py:attribute" in caught.value.hint


def test_a_file_that_is_not_there_is_told_with_the_nearest(project):
    with pytest.raises(ConfigError, match=r"no file .*nh_trian\.py; did you mean 'nh_train\.py'"):
        resolve("nh_trian.py:build", key="model", root=project(nh_train=""))


def test_a_relative_module_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is relative"):
        resolve(".train:build", key="model", root=tmp_path)


def test_an_attribute_that_is_not_there_is_told_with_the_nearest(project):
    root = project(nh_train="import math\ndef build_model():\n    pass\n")
    with pytest.raises(ConfigError, match=r"the module is found, but .*nh_train\.py has no 'build_modle'") as caught:
        resolve("nh_train:build_modle", key="model", root=root)
    assert "did you mean 'build_model'" in caught.value.message
    assert caught.value.hint == "it defines build_model"
    with pytest.raises(ConfigError, match="build_model has no 'x'"):
        resolve("nh_train:build_model.x", key="model", root=root)


def test_a_missing_import_inside_the_module_is_the_users_error(project):
    root = project(nh_train="import nh_absent_dependency\n")
    with pytest.raises(UserCodeError, match="No module named 'nh_absent_dependency'") as caught:
        resolve("nh_train:build", key="model", root=root)
    assert caught.value.key == "model"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("spec", ["nh_train:build", "nh_train.py:build"])
@pytest.mark.parametrize(
    ("code", "kind"), [("1 / 0", ZeroDivisionError), ("def", SyntaxError), ("import sys; sys.exit(2)", SystemExit)]
)
def test_an_import_that_raises_is_the_users_error_and_leaves_no_module(project, spec, code, kind):
    with pytest.raises(UserCodeError) as caught:
        resolve(spec, key="data", root=project(nh_train=code))
    assert type(caught.value.__cause__) is kind
    assert "nh_train" not in sys.modules


def test_a_script_that_exits_on_import_is_told_about_its_main_guard(project):
    with pytest.raises(UserCodeError) as caught:
        resolve("nh_train:build", key="data", root=project(nh_train="raise SystemExit(2)\n"))
    assert "__main__" in caught.value.hint


def test_an_attribute_that_raises_is_the_users_error(project):
    root = project(nh_train="def __getattr__(name):\n    raise RuntimeError('lazy ' + name)\n")
    with pytest.raises(UserCodeError, match="lazy build"):
        resolve("nh_train:build", key="model", root=root)


def test_what_user_code_raises_carries_the_key_and_the_cause():
    with pytest.raises(UserCodeError, match="loss: ValueError: bad batch") as caught, call_user("loss"):
        raise ValueError("bad batch")
    assert caught.value.key == "loss"
    assert isinstance(caught.value.__cause__, ValueError)


def test_stop_iteration_of_user_code_is_an_error_too():
    with pytest.raises(UserCodeError, match="StopIteration"), call_user("data"):
        next(iter(()))


def test_an_interrupt_and_our_own_errors_pass_through():
    with pytest.raises(KeyboardInterrupt), call_user("loss"):
        raise KeyboardInterrupt
    with pytest.raises(ConfigError, match="loss: mine"), call_user("loss"):
        raise ConfigError("loss: mine")


def test_a_traceback_holds_the_users_frames_only(project):
    root = project(
        nh_train="import torch\ndef build():\n    return torch.nn.Linear(2, 2)(inner())\n"
        "def inner():\n    return torch.ones(1, 3)\n"
    )
    build = resolve("nh_train:build", key="model", root=root)
    with pytest.raises(UserCodeError) as caught, call_user("model"):
        build()
    text = user_traceback(caught.value.__cause__, root=root)
    frames = [line for line in text.splitlines() if line.startswith("  File")]
    assert frames[-1].startswith(f'  File "{root / "nh_train.py"}", line 3, in build')
    assert not any("/torch/" in frame or "nanhunt/training" in frame for frame in frames)
    assert text.splitlines()[-1].startswith("RuntimeError: mat1 and mat2")


def test_a_failed_import_shows_the_users_line(project):
    root = project(nh_train="x = 1\ny = x / 0\n")
    with pytest.raises(UserCodeError) as caught:
        resolve("nh_train:y", key="model", root=root)
    text = user_traceback(caught.value.__cause__, root=root)
    assert "y = x / 0" in text
    assert "importlib" not in text
    assert "user_code.py" not in text
    assert text.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_traceback_without_user_frames_is_its_last_line(tmp_path):
    assert user_traceback(ValueError("bad"), root=tmp_path) == "ValueError: bad"


def test_a_syntax_error_shows_where_it_is(project):
    root = project(nh_train="def f(:\n    pass\n")
    with pytest.raises(UserCodeError) as caught:
        resolve("nh_train:f", key="model", root=root)
    text = user_traceback(caught.value.__cause__, root=root)
    assert f'File "{root / "nh_train.py"}", line 1' in text
    assert "SyntaxError: invalid syntax" in text.splitlines()[-1]


def test_a_chain_of_exceptions_is_kept(project):
    code = "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError as e:\n        raise KeyError('k') from e\n"
    root = project(nh_train=code)
    with pytest.raises(UserCodeError) as caught, call_user("model"):
        resolve("nh_train:f", key="model", root=root)()
    text = user_traceback(caught.value.__cause__, root=root)
    assert "ZeroDivisionError: division by zero" in text
    assert text.splitlines()[-1] == "KeyError: 'k'"


def test_parameters_are_filled_by_name_only():
    def batches(start_step, *, rank=0, other=1, **rest):
        return start_step, rank, other, rest

    available = {"start_step": 5, "rank": 1, "world_size": 2}
    assert fill_parameters(batches, available) == {"start_step": 5, "rank": 1}


def test_parameters_of_classes_and_builtins_are_filled_or_none():
    class Loader:
        def __init__(self, rank):
            self.rank = rank

    assert fill_parameters(Loader, {"rank": 1, "world_size": 2}) == {"rank": 1}
    assert fill_parameters(dict, {"rank": 1}) == {}
    assert fill_parameters(lambda rank, /: rank, {"rank": 1}) == {}
