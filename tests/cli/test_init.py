"""`nanhunt init`: the config it writes, what it says, what it asks at a terminal, and what it leaves alone."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanhunt.commands.init import InitOptions, init
from nanhunt.training.config import load_config


@pytest.fixture
def bare(project):
    """The project without its config."""
    (project.root / "nanhunt.yaml").unlink()
    return project


def files(project):
    return sorted(p.relative_to(project.root).as_posix() for p in project.root.rglob("*"))


def test_what_init_writes_is_replayed_without_an_edit(bare, nanhunt):
    done = nanhunt("init", "ckpt.pt")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].strip() == "nanhunt replay ckpt.pt --dry-run"
    config = load_config(bare.root / "nanhunt.yaml")
    assert config.model.call == "train:build_model"
    assert config.optimizer.call == "torch.optim:AdamW"
    planned = nanhunt(*done.out.splitlines()[-1].split()[1:])
    assert planned.code == 0, planned.err
    replayed = nanhunt("replay", "ckpt.pt", "--steps", "2", "--exit-code")
    assert replayed.code == 0, replayed.err


def test_init_says_what_it_could_not_know(bare, nanhunt):
    told = nanhunt("init", "ckpt.pt").out
    assert "could not know" in told
    for text in ("model, data, loss: guesses", "random state", "clipping"):
        assert text in told


def test_an_open_key_is_named_by_init_and_by_the_replay(bare, nanhunt):
    source = (bare.root / "train.py").read_text()
    (bare.root / "train.py").write_text(
        source.replace("def batches(", "def _old(").replace("def make_batch(", "def _older(")
    )
    told = nanhunt("init", "ckpt.pt")
    assert told.code == 0
    assert "name data in nanhunt.yaml" in told.out
    refused = nanhunt("replay", "ckpt.pt", "--dry-run")
    assert refused.is_clean_refusal
    assert "data: no module 'my_run'" in refused.err
    assert "name under data:" in refused.err


def test_a_placeholder_does_not_run_the_file_that_is_there(bare, nanhunt):
    (bare.root / "train.py").write_text("open('ran', 'w')\nwhile True:\n    break\n")
    assert nanhunt("init", "ckpt.pt").code == 0
    assert nanhunt("replay", "ckpt.pt", "--dry-run").code == 2
    assert not (bare.root / "ran").exists()


def test_init_imports_nothing_where_nobody_is_asked(bare, nanhunt):
    bare.add_code("open('ran', 'w').close()")
    assert nanhunt("init", "ckpt.pt").code == 0
    assert files(bare) == ["ckpt.pt", "nanhunt.yaml", "train.py"]


def test_an_existing_config_is_kept_unless_force_is_given(project, nanhunt):
    before = (project.root / "nanhunt.yaml").read_bytes()
    refused = nanhunt("init", "ckpt.pt")
    assert refused.is_clean_refusal
    assert "--force" in refused.err
    assert (project.root / "nanhunt.yaml").read_bytes() == before
    assert nanhunt("init", "ckpt.pt", "--force").code == 0
    assert (project.root / "nanhunt.yaml").read_bytes() != before


@pytest.mark.parametrize("out", ["missing/nanhunt.yaml", "nanhunt.txt", "folder.yaml"])
def test_a_config_that_cannot_be_written_is_refused(out, bare, nanhunt):
    (bare.root / "folder.yaml").mkdir()
    before = files(bare)
    assert nanhunt("init", "ckpt.pt", "-o", out).is_clean_refusal
    assert files(bare) == before


def test_another_name_stands_in_the_next_command(bare, nanhunt):
    told = nanhunt("init", "ckpt.pt", "-o", "other.yaml", "-q")
    assert told.out == "nanhunt replay ckpt.pt -c other.yaml --dry-run\n"
    assert nanhunt(*told.out.split()[1:]).code == 0


def test_without_a_checkpoint_there_is_a_general_starter(bare, nanhunt, tmp_path):
    assert nanhunt("init", "-o", "general.yaml").code == 0
    text = (bare.root / "general.yaml").read_text()
    load_config(bare.root / "general.yaml")
    for key in ("model:", "data:", "# scheduler:", "# train_step:", "precision:", "train:", "# checkpoint:"):
        assert f"\n{key}" in text


@pytest.mark.parametrize(("name", "says"), [("absent.pt", "no such file"), ("train.py", "is a text file")])
def test_what_is_no_checkpoint_is_refused_as_a_replay_refuses_it(name, says, bare, nanhunt):
    refused = nanhunt("init", name)
    assert refused.is_clean_refusal
    assert says in refused.err
    assert not (bare.root / "nanhunt.yaml").exists()


def test_a_folder_that_needs_pickle_gets_a_config_that_says_so(bare, nanhunt):
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(bare.checkpoint(), storage_writer=FileSystemWriter(bare.root / "dcp"), no_dist=True)
    told = nanhunt("init", "dcp")
    assert told.code == 0, told.err
    assert "was not read" in told.out
    assert "The checkpoint was not read" in (bare.root / "nanhunt.yaml").read_text()
    load_config(bare.root / "nanhunt.yaml")
    assert nanhunt("init", "dcp", "--trust-pickle", "--force").code == 0
    assert "step 10" in (bare.root / "nanhunt.yaml").read_text()


def test_a_replay_without_a_config_points_to_init(bare, nanhunt):
    refused = nanhunt("replay", "ckpt.pt")
    assert refused.is_clean_refusal
    assert "`nanhunt init ckpt.pt`" in refused.err


def test_a_nanogpt_checkpoint_gives_its_arguments_to_the_model(bare, nanhunt):
    saved = bare.checkpoint()
    content = {**saved, "model_args": {"width": 8}, "iter_num": 10, "config": {"grad_clip": 1.0, "dtype": "bfloat16"}}
    torch.save(content, bare.root / "ckpt.pt")
    assert nanhunt("init", "ckpt.pt").code == 0
    config = load_config(bare.root / "nanhunt.yaml")
    assert config.model.kwargs == {"width": 8}
    assert (config.train.clip_grad_norm, config.precision.autocast) == (1.0, "bf16")
    assert nanhunt("replay", "ckpt.pt", "--dry-run").code == 0


# --- asked at a terminal ---------------------------------------------------------------------------------------------


@pytest.fixture
def answered(bare, capsys):
    """A function that runs init with these answers, and returns what was asked and said."""

    def run(*answers):
        asked, left = [], list(answers)

        def ask(prompt):
            asked.append(prompt)
            if not left:
                raise EOFError
            answer = left.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        init(InitOptions(checkpoint=bare.root / "ckpt.pt"), ask=ask)
        return asked, capsys.readouterr().out

    return run


def test_empty_lines_confirm_the_guesses(answered, bare):
    asked, said = answered("", "", "", "")
    assert [a.split(",")[0] for a in asked] == ["model", "data", "loss", "optimizer"]
    assert "[train:build_model]" in asked[0]
    assert "this runs what your modules do when they are imported" in said
    assert "guesses from the source" not in said
    assert load_config(bare.root / "nanhunt.yaml").model.call == "train:build_model"


def test_a_wrong_answer_is_answered_with_the_nearest_name_and_asked_again(answered, bare):
    bare.add_code("def another_loss(model, batch):\n    return compute_loss(model, batch)")
    asked, said = answered("", "", "train:another_los", "train:FIRST", "train:another_loss", "")
    assert len(asked) == 6
    assert "did you mean 'another_loss'?" in said
    assert load_config(bare.root / "nanhunt.yaml").loss.call == "train:another_loss"


def test_what_is_not_callable_is_asked_again(answered, bare):
    bare.add_code("WIDTH = 8\nROWS = [make_batch(1)]")
    _, said = answered("train:WIDTH", "", "train:ROWS", "", "")
    assert "is a int, not a callable" in said
    assert load_config(bare.root / "nanhunt.yaml").data.call == "train:ROWS"


def test_code_that_raises_when_it_is_imported_is_shown_and_asked_again(answered, bare):
    bare.write("broken.py", "import json\n\n\ndef model():\n    return 1\n\n\njson.loads('{')\n")
    asked, said = answered("broken:model", "", "", "", "")
    assert 'broken.py", line 8' in said
    assert "JSONDecodeError" in said
    assert asked[0] == asked[1]


def test_an_end_of_input_keeps_the_rest_as_it_was_guessed(answered, bare):
    answered("")
    assert load_config(bare.root / "nanhunt.yaml").loss.call == "train:compute_loss"


def test_an_interrupt_while_asking_leaves_nothing(answered, bare):
    before = files(bare)
    with pytest.raises(KeyboardInterrupt):
        answered("", KeyboardInterrupt())
    assert files(bare) == before


class Terminal:
    """A child process whose three streams are one pseudo-terminal."""

    def __init__(self, arguments, cwd, environment):
        self.controller, follower = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nanhunt", *arguments], cwd=cwd, stdin=follower, stdout=follower, stderr=follower,
            env={**environment, "TERM": "dumb", "COLUMNS": "100"}, start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        self.seen = ""

    def until(self, text, seconds=180.0):
        """Read until a text is there that was not before."""
        end = time.monotonic() + seconds
        start = len(self.seen)
        while text not in self.seen[start:]:
            assert time.monotonic() < end, self.seen
            if not select.select([self.controller], [], [], 1.0)[0]:
                continue
            try:
                self.seen += os.read(self.controller, 4096).decode()
            except OSError:  # Linux says EIO once nobody has the other end open
                break
        return self.seen[start:]

    def type(self, line):
        """Write a line, as a user does."""
        os.write(self.controller, line.encode() + b"\n")

    def interrupt(self):
        """Press Ctrl-C, and again: C's readline misses one that comes between its prompt and its wait for a key."""
        for _ in range(20):
            os.killpg(self.process.pid, signal.SIGINT)
            if select.select([self.controller], [], [], 5.0)[0]:
                return


@pytest.fixture
def terminal(bare, environment):
    """A function that starts nanhunt in the project, on a terminal of its own."""
    started = []

    def start(*arguments):
        started.append(Terminal(arguments, bare.root, environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()
        os.close(each.controller)


def test_a_terminal_is_asked_and_a_typo_is_mended(terminal, bare):
    session = terminal("init", "ckpt.pt")
    session.until("[train:build_model]: ")
    session.type("train:build_modle")
    assert "did you mean 'build_model'?" in session.until("[train:build_model]: ")
    for prompt in ("data, ", "loss, ", "optimizer, "):
        session.type("")
        session.until(prompt)
    session.type("")
    session.until("--dry-run")
    assert session.process.wait(180) == 0
    assert load_config(bare.root / "nanhunt.yaml").model.call == "train:build_model"


def test_ctrl_c_at_a_question_ends_with_130_and_leaves_nothing(terminal, bare):
    before = files(bare)
    session = terminal("init", "ckpt.pt")
    session.until("[train:build_model]: ")
    session.type("")
    session.until("data, ")
    session.interrupt()
    assert "interrupted" in session.until("interrupted")
    assert session.process.wait(180) == 130
    assert files(bare) == before


def test_quiet_asks_nothing_at_a_terminal(terminal, bare):
    session = terminal("init", "ckpt.pt", "-q")
    assert "[" not in session.until("--dry-run")
    assert session.process.wait(180) == 0
    assert Path(bare.root / "nanhunt.yaml").exists()
