"""Bad input ends in one message that names the file, the key or the option and the mend, and costs no trace."""

from __future__ import annotations

import argparse
import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanhunt import jsonsafe
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY

FIRST_STEP = 10


class Evil:
    """Something that runs a command when it is unpickled by force."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


@pytest.fixture
def assert_refused(project, nanhunt):
    """A function that runs a command which must refuse: the texts it names, and not a file more than before."""

    def check(*arguments, names=()):
        before = sorted(project.root.rglob("*"))
        outcome = nanhunt(*arguments)
        assert outcome.is_clean_refusal, outcome
        for text in names:
            assert text in outcome.err
        assert sorted(project.root.rglob("*")) == before
        return outcome

    return check


@pytest.fixture
def assert_user_failed(project, nanhunt):
    """A function that runs a replay in which the user's own code fails before a step."""

    def check(*arguments, names=()):
        outcome = nanhunt(*arguments)
        assert outcome.code == 3, outcome
        for text in names:
            assert text in outcome.err
        assert "nanhunt/" not in outcome.err.replace(str(project.root), "")
        assert "site-packages" not in outcome.err
        return outcome

    return check


# --- the checkpoint --------------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_is_named_with_those_that_are_there(assert_refused):
    assert_refused("replay", "ckpt_10.pt", names=["ckpt_10.pt: no such file", "ckpt.pt"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello\n" * 9, "is a text file"),
        (bytes(range(1, 200)) * 9, "is no checkpoint of a kind"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (pickle.dumps({"model": 1}), "torch.save"),
    ],
    ids=["empty", "text", "noise", "image", "lfs", "pickle"],
)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(content, says, project, assert_refused):
    (project.root / "other.pt").write_bytes(content)
    assert_refused("replay", "other.pt", names=["other.pt: ", says])


@pytest.mark.parametrize("kept", [4, 100, 3000])
def test_a_checkpoint_that_is_cut_short_is_said_to_be(kept, project, assert_refused):
    (project.root / "cut.pt").write_bytes((project.root / "ckpt.pt").read_bytes()[:kept])
    assert_refused("replay", "cut.pt", names=["cut.pt: is cut short", "earlier checkpoint"])


def test_a_trace_in_place_of_a_checkpoint_is_told_apart(project, nanhunt, assert_refused):
    nanhunt("replay", "ckpt.pt", "--steps", "1")
    assert_refused("replay", "trace.parquet", names=["is a trace, not a checkpoint", "`nanhunt report trace.parquet`"])


def test_keys_that_do_not_match_are_counted_and_named(project, assert_refused):
    content = project.checkpoint()
    content["model"]["hiden.weight"] = content["model"].pop("hidden.weight")
    torch.save(content, project.root / "renamed.pt")
    names = ["renamed.pt: ", "matched 4 of 5", "missing: hidden.weight", "unexpected: hiden.weight"]
    assert_refused("replay", "renamed.pt", names=names)


def test_shapes_that_do_not_match_are_named_with_both_sizes(project, assert_refused):
    project.configure(model={"call": "train:build_model", "kwargs": {"width": 16}})
    names = ["ckpt.pt: ", "hidden.weight model (16, 16) checkpoint (8, 8)", "kwargs"]
    assert_refused("replay", "ckpt.pt", names=names)


def test_a_checkpoint_of_another_model_is_said_to_match_nothing(project, assert_refused):
    torch.save({"a.weight": torch.ones(3), "a.bias": torch.ones(3)}, project.root / "stranger.pt")
    assert_refused(
        "replay", "stranger.pt", names=["stranger.pt: ", "matched 0 of 5", "missing: embed.weight", "`model:`"]
    )


def test_what_needs_pickle_is_refused_until_it_is_trusted(project, assert_refused, nanhunt):
    torch.save({**project.checkpoint(), "args": argparse.Namespace(lr=1)}, project.root / "args.pt")
    assert_refused("replay", "args.pt", names=["args.pt: needs pickle: argparse.Namespace", "--trust-pickle"])
    trusted = nanhunt("replay", "args.pt", "--trust-pickle")
    assert trusted.code == 0
    assert Trace.open(project.root / "trace.parquet").complete


def test_an_attack_is_named_and_does_nothing(project, assert_refused):
    torch.save({**project.checkpoint(), "extra": Evil()}, project.root / "evil.pt")
    (project.root / "bare.pt").write_bytes(pickle.dumps(Evil()))
    outcome = assert_refused("replay", "evil.pt", names=["evil.pt: ", "system", "was not run"])
    assert "--trust-pickle" not in outcome.err
    assert_refused("replay", "bare.pt", names=["bare.pt: "])
    assert not (project.root / "was_run").exists()


def test_optimizer_groups_that_do_not_fit_are_counted(project, assert_refused):
    project.add_code(
        """
        def two_groups(model):
            return torch.optim.AdamW([{"params": [model.head.weight]}, {"params": [model.head.bias]}])
        """
    )
    project.configure(optimizer="train:two_groups")
    assert_refused("replay", "ckpt.pt", names=["optimizer: ", "[1, 1]", "[5]", "same groups"])


# --- the config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model: a:b\ndata: a:c\ntrain:\n  stepz: 3\n", ["nanhunt.yaml:4:3", "train.stepz", "'steps'"]),
        ("modle: a:b\ndata: a:c\n", ["nanhunt.yaml:1:1", "modle", "'model'"]),
        ("model: a:b\ndata: a:c\ntrain: {steps: many}\n", ["nanhunt.yaml:3:9", "train.steps", "whole number", "many"]),
        ("model: a:b\ndata: a:c\ntrain: {steps: 0}\n", ["train.steps", "at least 1"]),
        ("model: a:b\ndata: a:c\nprecision: {autocast: fp61}\n", ["precision.autocast", "'fp16'"]),
        ("model: a:b\ndata: a:c\nmodel: d:e\n", ["nanhunt.yaml:3:1", "model", "written twice", "line 1"]),
        ("model: [a\ndata: b\n", ["nanhunt.yaml:1:8", "not closed", "model: [a"]),
        ("model: a:b\n\tdata: a:c\n", ["nanhunt.yaml:2:"]),
        ("- model\n- data\n", ["nanhunt.yaml:1:1", "key: value", "a list"]),
        ("", ["nanhunt.yaml: is empty", "model: train:build_model"]),
        ("# only a comment\n", ["nanhunt.yaml: is empty"]),
        ("model: train.build_model\ndata: a:c\n", ["model", "'train:build_model'"]),
        ("model: train:build_model\n", ["data", "missing", "train:batches"]),
    ],
)
def test_a_config_that_is_wrong_names_the_place_and_the_mend(text, names, project, assert_refused):
    project.write("nanhunt.yaml", text)
    assert_refused("replay", "ckpt.pt", names=names)


def test_all_that_is_wrong_in_a_config_is_said_at_once(project, assert_refused):
    project.write("nanhunt.yaml", "modle: a:b\ntrain: {steps: x, seed: y}\n")
    assert_refused("replay", "ckpt.pt", names=["modle", "data", "train.steps", "train.seed"])


def test_a_missing_config_says_where_it_was_looked_for(project, assert_refused):
    (project.root / "nanhunt.yaml").unlink()
    assert_refused("replay", "ckpt.pt", names=[f"{project.root / 'nanhunt.yaml'}", "model: train:build_model"])
    assert_refused("replay", "ckpt.pt", "-c", "mine.yaml", names=["mine.yaml: no such file"])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": "trian:build_model"}, ["model: ", "'trian'", "'train'"]),
        ({"model": "train:buildmodel"}, ["model: ", "'buildmodel'", "'build_model'"]),
        ({"data": "train:batch"}, ["data: ", "'batch'", "'batches'"]),
        ({"loss": "train:compute_los"}, ["loss: ", "'compute_loss'"]),
        ({"optimizer": "torch.optim:AdamWW"}, ["optimizer: ", "'AdamW'"]),
        ({"scheduler": "scheduling:make"}, ["scheduler: ", "'scheduling'"]),
        ({"model": "model.py:build"}, ["model: ", "no file", "model.py"]),
        ({"model": "train:FIVE"}, ["model: ", "int", "callable"]),
        ({"optimizer": "train:FIVE"}, ["optimizer: ", "not callable"]),
    ],
)
def test_an_import_string_that_does_not_resolve_names_the_nearest(changes, names, project, assert_refused):
    project.add_code("FIVE = 5")
    project.configure(**changes)
    assert_refused("replay", "ckpt.pt", names=names)


def test_a_config_in_another_folder_brings_its_folder_to_the_path(project, nanhunt):
    folder = project.root / "sub"
    folder.mkdir()
    for name in ("nanhunt.yaml", "train.py"):
        (project.root / name).rename(folder / name)
    assert nanhunt("replay", "ckpt.pt", "-c", "sub/nanhunt.yaml").code == 0
    assert Trace.open(project.root / "trace.parquet").last_step == FIRST_STEP + 3


# --- the user's code -------------------------------------------------------------------------------------------------


def test_a_module_that_raises_on_import_shows_the_users_frames(project, assert_user_failed):
    project.write("broken.py", "import torch\n\ndef boom():\n    raise ValueError('no such corpus')\n\nboom()\n")
    project.configure(model="broken:build")
    names = ["broken.py", "line 6", "boom()", "ValueError: no such corpus", "error: model: "]
    assert_user_failed("replay", "ckpt.pt", names=names)
    assert not (project.root / "trace.parquet").exists()


def test_a_script_that_exits_on_import_is_told_how_not_to(project, assert_user_failed):
    project.write("broken.py", "import argparse\nargparse.ArgumentParser().parse_args(['--wrong'])\n")
    project.configure(model="broken:build")
    assert_user_failed("replay", "ckpt.pt", names=["error: model: ", "__main__"])


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("model", "def broken():\n    raise KeyError('width')\n"),
        ("data", "def broken():\n    raise KeyError('width')\n"),
        ("optimizer", "def broken(model):\n    raise KeyError('width')\n"),
        ("scheduler", "def broken(optimizer):\n    raise KeyError('width')\n"),
    ],
)
def test_a_callable_that_raises_names_its_key(key, code, project, assert_user_failed):
    project.add_code(code)
    project.configure(**{key: "train:broken"})
    outcome = assert_user_failed(
        "replay", "ckpt.pt", names=["train.py", "in broken", "KeyError: 'width'", f"error: {key}: "]
    )
    assert outcome.out == ""
    assert not (project.root / "trace.parquet").exists()


def test_arguments_that_a_callable_does_not_take_name_its_key(project, assert_user_failed):
    project.configure(optimizer={"call": "torch.optim:AdamW", "kwargs": {"learning_rate": 1}})
    assert_user_failed("replay", "ckpt.pt", names=["error: optimizer: ", "'learning_rate'"])


@pytest.mark.parametrize(
    ("key", "code", "names"),
    [
        ("model", "def wrong():\n    return 7\n", ["train:wrong returned int", "nn.Module"]),
        ("optimizer", "def wrong(model):\n    return 7\n", ["train:wrong returned int", "Optimizer"]),
        ("data", "def wrong():\n    return 7\n", ["iterable of batches", "int"]),
        ("data", "def wrong():\n    return []\n", ["no batch"]),
        ("loss", "def wrong(model, batch):\n    return torch.zeros(4)\n", ["(4,)", "scalar"]),
        ("loss", "def wrong(model, batch):\n    return None\n", ["NoneType", "scalar"]),
        ("loss", "def wrong(model, batch):\n    return torch.tensor(1.0)\n", ["requires_grad"]),
        ("train_step", "def wrong(model, batch, optimizer):\n    return None\n", ["NoneType", "scalar"]),
    ],
)
def test_a_callable_that_returns_the_wrong_thing_names_its_key_and_leaves_no_trace(
    key, code, names, project, assert_refused
):
    project.add_code(code)
    project.configure(**{key: "train:wrong"})
    assert_refused("replay", "ckpt.pt", names=[f"error: {key}: ", *names])


def test_a_model_that_changes_the_directory_does_not_move_the_trace(project, nanhunt):
    project.add_code(
        """
        def wandering_model():
            import os
            os.makedirs("elsewhere")
            os.chdir("elsewhere")
            return build_model()
        """
    )
    project.configure(model="train:wandering_model")
    replayed = nanhunt("replay", "ckpt.pt")
    assert replayed.code == 0
    assert replayed.out == "nanhunt report trace.parquet\n"
    assert list((project.root / "elsewhere").iterdir()) == []
    assert Trace.open(project.root / "trace.parquet").complete


# --- data that ends or fails on the way ------------------------------------------------------------------------------


def test_data_that_runs_out_ends_the_replay_and_the_report_says_so(project, nanhunt):
    project.plant(end_at=FIRST_STEP + 2)
    replayed = nanhunt("replay", "ckpt.pt")
    assert replayed.code == 0
    assert "steps 10 to 11" in replayed.err
    trace = Trace.open(project.root / "trace.parquet")
    assert trace.complete
    assert trace.steps == (10, 11)
    document = json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)
    assert any("data ended before step 12" in text for text in document["assumptions"])


def test_data_that_raises_on_the_way_keeps_the_trace_and_names_it(project, assert_user_failed):
    project.plant(raise_at=FIRST_STEP + 2)
    names = ["train.py", "OSError: shard 12 is not readable", "error: data: ", "(up to step 11): trace.parquet"]
    assert_user_failed("replay", "ckpt.pt", names=names)
    trace = Trace.open(project.root / "trace.parquet")
    assert set(trace.scalars("loss")) == {10, 11}
    assert not trace.complete
    assert "shard 12 is not readable" in trace.reason


def test_data_that_raises_at_once_leaves_no_trace(project, assert_user_failed):
    project.plant(raise_at=FIRST_STEP)
    assert_user_failed("replay", "ckpt.pt", names=["error: data: ", "shard 10"])
    assert sorted(p.name for p in project.root.iterdir()) == ["ckpt.pt", "nanhunt.yaml", "train.py"]


def test_a_loss_that_goes_wrong_on_the_way_keeps_the_trace(project, nanhunt):
    project.add_code(
        """
        def forgetful_loss(model, batch, calls=[]):
            calls.append(1)
            return compute_loss(model, batch) if len(calls) < 3 else None
        """
    )
    project.configure(loss="train:forgetful_loss")
    outcome = nanhunt("replay", "ckpt.pt")
    assert outcome.is_clean_refusal
    assert "error: loss: " in outcome.err
    assert "(up to step 11): trace.parquet" in outcome.err
    assert set(Trace.open(project.root / "trace.parquet").scalars("loss")) == {10, 11}


def test_an_exception_inside_a_step_is_a_finding_with_its_module_and_line(project, nanhunt):
    project.plant(index_at=FIRST_STEP + 3)
    replayed = nanhunt("replay", "ckpt.pt")
    assert replayed.code == 0
    assert "Traceback" not in replayed.err
    document = json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)
    onset = document["onset"]
    line = (
        (project.root / "train.py")
        .read_text()
        .splitlines()
        .index("        return self.head(torch.relu(self.hidden(x + self.embed(tokens))))")
    )
    assert document["outcome"] == "fault"
    assert (onset["kind"], onset["step"], onset["module"]) == ("exception", 13, "embed")
    assert onset["source"] == f"train.py:{line + 1}"
    assert "IndexError" in document["summary"]


# --- the trace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["report"], ["trials"], ["diff", "t.parquet"]], ids=" ".join)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda whole: whole[:-100], "is damaged: its end is missing"),
        (lambda whole: whole[:40], "is damaged"),
        (lambda whole: b"", "is empty"),
        (lambda whole: bytes(range(256)) * 5, "is not a trace"),
        (lambda whole: b"step,loss\n1,2\n", "is not a trace"),
        (lambda whole: whole[:2000] + bytes(200) + whole[2200:-8] + bytes(4) + b"PAR1", "is damaged"),
    ],
    ids=["cut", "stump", "empty", "noise", "csv", "footer"],
)
def test_a_file_that_is_no_trace_is_called_what_it_is(content, says, command, healthy_trace, project, assert_refused):
    (project.root / "t.parquet").write_bytes(content(healthy_trace.read_bytes()))
    assert_refused(*command, "t.parquet", names=["t.parquet", says])


def test_a_trace_of_a_later_schema_asks_for_an_upgrade(healthy_trace, project, assert_refused):
    with pq.ParquetFile(healthy_trace) as file:
        table, body = file.read(), jsonsafe.loads(file.metadata.metadata[METADATA_KEY])
    metadata = {METADATA_KEY: jsonsafe.dumps({**body, "schema_version": 99})}
    pq.write_table(table.replace_schema_metadata(metadata), project.root / "later.parquet")
    assert_refused("report", "later.parquet", names=["later.parquet", "later nanhunt", "schema 99", "upgrade"])


def test_a_parquet_file_of_another_program_is_no_trace(project, assert_refused):
    pq.write_table(pa.table({"step": [1, 2]}), project.root / "other.parquet")
    assert_refused("report", "other.parquet", names=["other.parquet is not a trace"])


def test_a_checkpoint_in_place_of_a_trace_is_told_apart(assert_refused):
    assert_refused("report", "ckpt.pt", names=["ckpt.pt is not a trace", "checkpoint", "`nanhunt replay ckpt.pt`"])


def test_a_missing_trace_and_a_folder_without_one_are_named(project, assert_refused):
    assert_refused("report", "none.parquet", names=["none.parquet"])
    (project.root / "empty").mkdir()
    assert_refused("report", "empty", names=["empty holds no trace"])


def test_an_existing_trace_is_not_touched_without_force(project, assert_refused, nanhunt):
    trace = project.root / "trace.parquet"
    trace.write_bytes(b"an older trace")
    project.add_code("open('built', 'w')")
    assert_refused("replay", "ckpt.pt", names=["--out trace.parquet", "exists already", "--force"])
    assert trace.read_bytes() == b"an older trace"
    assert not (project.root / "built").exists()
    assert nanhunt("replay", "ckpt.pt", "--force").code == 0
    assert Trace.open(trace).complete


def test_out_makes_its_folders(project, nanhunt):
    replayed = nanhunt("replay", "ckpt.pt", "-o", "runs/a/t.parquet")
    assert replayed.code == 0
    assert replayed.out == "nanhunt report runs/a/t.parquet\n"
    assert Trace.open(project.root / "runs/a/t.parquet").complete


def test_out_below_a_file_is_refused(assert_refused):
    assert_refused("replay", "ckpt.pt", "-o", "train.py/t.parquet", names=["train.py"])


def test_a_report_is_not_written_where_there_is_no_folder(healthy_trace, assert_refused):
    assert_refused("report", healthy_trace, "-o", "reports/r.md", names=["reports/r.md", "mkdir -p reports"])


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["-o", "t.csv"], ["--out t.csv", ".parquet"]),
        (["--device", "tpu"], ["--device tpu", "cpu, cuda"]),
        (["--device", "meta"], ["--device meta", "cpu, cuda"]),
        (["--device", "cuda:99"], ["--device cuda:99", "--device cpu"]),
        (["--precision", "fp12"], ["--precision fp12", "did you mean fp32"]),
        (["--trial", "hope"], ["--trial hope", "nanhunt trials"]),
        (["--trial", "clip-nrom"], ["--trial clip-nrom", "did you mean clip-norm"]),
    ],
)
def test_a_value_that_an_option_does_not_know_lists_those_it_does(options, names, assert_refused):
    assert_refused("replay", "ckpt.pt", *options, names=names)


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--steps", "-3"],
        ["--steps", "many"],
        ["--every", "0"],
        ["--start-step", "-1"],
        ["--trials-budget", "-1"],
        ["--seed", "-1"],
    ],
)
def test_a_number_out_of_range_names_its_option(options, project, nanhunt):
    outcome = nanhunt("replay", "ckpt.pt", *options)
    assert outcome.code == 2
    assert options[0] in outcome.err
    assert "Traceback" not in outcome.err
    assert not (project.root / "trace.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["replya"], ["replya", "'replay'"]),
        (["replay", "ckpt.pt", "--stepz", "3"], ["--stepz", "--steps"]),
        (["replay"], ["CKPT"]),
        (["report"], ["TRACE"]),
        (["report", "a", "b"], ["b"]),
        (["diff", "a"], ["B"]),
        (["report", "t.parquet", "--top", "0"], ["--top"]),
    ],
)
def test_a_line_that_is_no_command_ends_with_2(arguments, names, nanhunt):
    outcome = nanhunt(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    for text in names:
        assert text in outcome.err


@pytest.mark.parametrize("command", [["report", "t.parquet"], ["diff", "a", "b"], ["formats"], ["explain"]])
def test_an_unknown_format_lists_the_formats(command, assert_refused):
    assert_refused(*command, "--format", "pdf", names=["--format pdf", "terminal", "json", "markdown"])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["formats", "--dtype", "bf61"], ["'bf61'", "bf16"]),
        (["formats", "--value", "many"], ["--value many", "70000"]),
        (["demo", "gremlins"], ["gremlins", "bad-sample"]),
    ],
)
def test_an_unknown_name_lists_the_known_ones(arguments, names, assert_refused):
    assert_refused(*arguments, names=names)


# --- how it is said --------------------------------------------------------------------------------------------------


def test_verbose_adds_the_traceback_and_keeps_the_code(project, nanhunt):
    outcome = nanhunt("replay", "none.pt", "--verbose")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-2].startswith("error: none.pt: ")


def test_verbose_adds_the_frames_of_nanhunt_to_the_users(project, nanhunt):
    project.add_code("def broken():\n    raise KeyError('width')\n")
    project.configure(model="train:broken")
    outcome = nanhunt("replay", "ckpt.pt", "-v")
    assert outcome.code == 3
    assert "nanhunt/training/assemble.py" in outcome.err
    assert outcome.err.splitlines()[-1] == "error: model: KeyError: 'width'"


def test_a_message_is_the_same_in_a_process_of_its_own(project, shell):
    outcome = shell("replay", "none.pt", cwd=project.root)
    assert outcome.is_clean_refusal
    assert outcome.err.startswith("error: none.pt: ")
