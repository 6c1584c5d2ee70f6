"""TARGETS: every way by which foreign bytes come into nanhunt. One more is one more entry."""

from __future__ import annotations

from tests.fuzz import checkpoints, command_line, configs, side_files, traces
from tests.fuzz.target import Target

__all__ = ["TARGETS", "find_target"]

TARGETS: tuple[Target, ...] = (
    Target(name="torch-zip", make=checkpoints.make_zip, run=checkpoints.load, share=90),
    Target(name="torch-legacy", make=checkpoints.make_legacy, run=checkpoints.load, share=60),
    Target(name="torch-pickle", make=checkpoints.make_pickle, run=checkpoints.load, share=90),
    Target(name="torch-odd", make=checkpoints.make_odd, run=checkpoints.load, share=80),
    Target(name="safetensors", make=checkpoints.make_safetensors, run=checkpoints.load, share=70),
    Target(name="trainer-folder", make=checkpoints.make_folder, run=checkpoints.load, share=70),
    Target(name="other-folders", make=checkpoints.make_dcp, run=checkpoints.load, share=10),
    Target(name="yaml", make=configs.make_damaged, run=configs.load, share=50),
    Target(name="yaml-odd", make=configs.make_odd, run=configs.load, share=40),
    Target(name="trace", make=traces.make_parquet, run=traces.load, share=70),
    Target(name="trace-partial", make=traces.make_partial, run=traces.load, share=60),
    Target(name="trace-metadata", make=traces.make_metadata, run=traces.load, share=80),
    Target(name="trace-rows", make=traces.make_rows, run=traces.load, share=50),
    Target(name="trace-diff", make=traces.make_rows, run=traces.diff, share=30),
    Target(name="partial-notes", make=traces.make_partial_notes, run=traces.load, share=40),
    Target(name="batches", make=side_files.make_batches, run=side_files.read_all_batches, share=30),
    Target(name="losses", make=side_files.make_losses, run=side_files.read_log, share=30),
    Target(name="cli-inspect", make=command_line.make_for_replay, run=command_line.inspect, share=10),
    Target(name="cli-init", make=command_line.make_for_replay, run=command_line.init, share=5),
    Target(name="cli-watch", make=command_line.make_for_report, run=command_line.look_on, share=5),
    Target(name="cli-report", make=command_line.make_for_report, run=command_line.report, share=10),
    Target(name="cli-replay", make=command_line.make_for_replay, run=command_line.replay, share=20),
)


def find_target(name: str) -> Target:
    """Return the target of that name. Raises KeyError."""
    return next(target for target in TARGETS if target.name == name)
