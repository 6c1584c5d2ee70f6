"""`nanhunt replay`: load, assemble, hunt, and say what to type next."""

from __future__ import annotations

import dataclasses
import difflib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from nanhunt.commands.manifest import manifest_of
from nanhunt.commands.plan import Plan, show_plan
from nanhunt.commands.progress import Bar, counting
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import original_run
from nanhunt.errors import NanhuntError, UsageError
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.hunt.again import try_again
from nanhunt.inert import printable
from nanhunt.library import library
from nanhunt.ranks.folder import await_others, own_file
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.team import Team
from nanhunt.ranks.world import World, entered, own_device
from nanhunt.report.original import told
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Onset
from nanhunt.trace.writer import TraceWriter, partial_path
from nanhunt.training.assemble import assemble
from nanhunt.training.bundle import Bundle, bundle_at
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint, no_such
from nanhunt.training.config import RunConfig, find_config, load_config
from nanhunt.training.loss_log import LossLog, original_losses
from nanhunt.training.owned_state import reference_tensors
from nanhunt.training.run import TrainingRun

__all__ = ["ReplayOptions", "replay"]


_DEVICES = "cpu, cuda or cuda:N"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """The command line of `nanhunt replay`; None means 'as the config says'."""

    checkpoint: Path
    config: Path | None = None
    out: Path = Path("trace.parquet")
    steps: int | None = None
    every: int = 1
    device: str | None = None
    precision: str | None = None
    start_step: int | None = None
    zoom: bool = True
    trials: bool = True
    trial_names: tuple[str, ...] = ()
    trials_budget: float | None = None
    #: another checkpoint of the run, to restore weights from
    reference: Path | None = None
    dry_run: bool = False
    trust_pickle: bool = False
    seed: int | None = None
    force: bool = False
    quiet: bool = False
    #: print the next command to type
    announce: bool = True


def replay(options: ReplayOptions) -> Onset | None:
    """Replay the checkpoint's training into a trace; return the onset of the fault, None where there was none.

    Prints the next command on stdout, everything else on stderr. Raises NanhuntError, and leaves no trace, where the
    input is bad. What ends the replay later, KeyboardInterrupt too, comes after the trace so far has been closed, with
    a note of where it lies.
    """
    _check(options)
    given = _given(options)
    _refuse_to_overwrite(options)
    device = _device(own_device(options.device))
    with entered(device) as world:
        return _replayed(options, given, device, world)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the command line names, as it was read."""

    config_path: Path
    config: RunConfig
    checkpoint: Checkpoint
    other: Checkpoint | None
    original: LossLog | None
    bundle: Bundle | None


def _given(options: ReplayOptions) -> _Given:
    if not options.checkpoint.exists():
        raise no_such(options.checkpoint)
    bundle = bundle_at(options.checkpoint)
    config_path, path = options.config, options.checkpoint
    if bundle is not None:
        config_path, path = config_path or bundle.config, bundle.checkpoint
        bundle.enter()
    config_path = find_config(config_path, path)
    config = load_config(config_path)
    checkpoint = load_checkpoint(path, keys=config.checkpoint, trust_pickle=options.trust_pickle)
    return _Given(
        config_path=config_path,
        config=config,
        checkpoint=checkpoint,
        other=_other_checkpoint(options, config),
        original=original_losses(config.losses, config_path.resolve().parent, checkpoint.path, checkpoint.step),
        bundle=bundle,
    )


def _replayed(options: ReplayOptions, given: _Given, device: torch.device, world: World | None) -> Onset | None:
    """Replay, as one process or as one of several."""
    if world is not None:
        options = _of_a_rank(options, world)
    out = options.out.absolute()  # the user's code may change the directory
    run = _assembled(options, given, device)
    settings = _settings(options, given, run)
    if options.dry_run:
        plan = Plan(
            run=run, checkpoint=given.checkpoint, settings=settings, config_path=given.config_path, out=options.out
        )
        show_plan(plan, lambda text: None if options.quiet else print(text, file=sys.stderr))
        return None
    if _adds(options):
        return _add_trials(options, given.config, run, given.checkpoint, settings)
    manifest = manifest_of(
        run,
        given.config,
        given.config_path,
        given.checkpoint,
        settings,
        asked=str(options.checkpoint),
        place=(0, 1) if world is None else (world.rank, world.size),
        precision=options.precision,
        seed=options.seed,
    )
    if (
        world is not None and given.bundle is not None
    ):  # a checkpoint a rank: the first one's digest stands for them all
        manifest = dataclasses.replace(manifest, checkpoint_digest=world.told(manifest.checkpoint_digest, by=0))
    path = out if world is None else own_file(out, world, force=options.force)
    writer, bar = TraceWriter(path, manifest, force=options.force), Bar(settings.steps, quiet=options.quiet)
    with _terminable(), _accounted(options.out, writer, bar), writer, bar:
        if given.original is not None:
            first = run.start_step
            writer.note(NoteKind.ORIGINAL, given.original.note(first, first + settings.steps - 1))
        onset = _hunted(run, writer, settings, bar, world, options.out)
    if world is not None:
        await_others(world)
    _say(options, out, run, onset, bar)
    return onset


def _of_a_rank(options: ReplayOptions, world: World) -> ReplayOptions:
    """Return the options of one process of several: rank 0 alone says how far they are."""
    if options.dry_run or options.trial_names:
        name = "--dry-run" if options.dry_run else "--trial"
        raise UsageError(f"{name}: not with {world.size} ranks", hint="run it in one process, without torchrun")
    is_first = world.rank == 0
    return dataclasses.replace(options, quiet=options.quiet or not is_first, announce=options.announce and is_first)


def _hunted(
    run: TrainingRun, writer: TraceWriter, settings: HuntSettings, bar: Bar, world: World | None, out: Path
) -> Onset | None:
    if world is None:
        return hunt(run, writer, settings, bar)

    def close(reason: str) -> str:
        writer.close(reason=reason)
        return _reach(out, writer, bar)

    with Lookout(world, close) as lookout:
        return hunt(run, writer, settings, bar, Team(world=world, lookout=lookout))


def _assembled(options: ReplayOptions, given: _Given, device: torch.device) -> TrainingRun:
    if given.bundle is not None:
        given.bundle.refuse_ranks(options.checkpoint)
    run = assemble(
        given.config,
        given.checkpoint,
        root=given.config_path.resolve().parent,
        device=device,
        precision=options.precision,
        start_step=options.start_step,
        seed=options.seed,
        # a dry run skips no batch: that may take hours
        track=None if options.dry_run else partial(counting, what="skipping batches", quiet=options.quiet),
        replication=given.bundle.replication if given.bundle is not None else None,
    )
    run.assumptions += given.bundle.assumptions() if given.bundle is not None else ()
    return run


def _settings(options: ReplayOptions, given: _Given, run: TrainingRun) -> HuntSettings:
    return HuntSettings(
        steps=options.steps or given.config.train.steps,
        every=options.every,
        zoom=options.zoom,
        trials=options.trials,
        trial_names=options.trial_names,
        trials_budget=options.trials_budget,
        recorded=given.bundle is not None,
        raised=given.bundle.raised if given.bundle is not None else None,
        reference=str(options.reference or ""),
        reference_tensors=reference_tensors(run, given.other) if given.other is not None else {},
    )


def _other_checkpoint(options: ReplayOptions, config: RunConfig) -> Checkpoint | None:
    if options.reference is None:
        return None
    return load_checkpoint(options.reference, keys=config.checkpoint, trust_pickle=options.trust_pickle)


def _check(options: ReplayOptions) -> None:
    if options.out.suffix != ".parquet":
        raise UsageError(f"--out {options.out}: a trace's name ends in .parquet")
    known = [i.name for i in library()]
    for name in options.trial_names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`nanhunt trials` lists them"
            raise UsageError(f"--trial {name}: there is no such trial", hint=hint)


def _adds(options: ReplayOptions) -> bool:
    """Whether trials are asked for by name of a trace that is there: they are added to it."""
    return bool(options.trial_names) and options.out.exists() and not options.force


def _add_trials(
    options: ReplayOptions, config: RunConfig, run: TrainingRun, checkpoint: Checkpoint, settings: HuntSettings
) -> Onset | None:
    trace = Trace.open(options.out)
    if trace.manifest.checkpoint_digest != checkpoint.digest:
        raise UsageError(
            f"--trial: {options.out} is the trace of another checkpoint, {trace.manifest.checkpoint}",
            hint="name its own checkpoint, or another trace with --out",
        )
    was = trace.manifest
    if was.config != config.document() or (was.settings.get("precision"), was.settings.get("seed")) != (
        options.precision,
        options.seed,
    ):
        raise UsageError(
            f"--trial: {options.out} was made with another config, --precision or --seed",
            hint="give the same, or replay with --force to look anew",
        )
    bar = Bar(settings.steps, quiet=options.quiet)
    with _terminable(), bar:
        trials = try_again(run, options.out.absolute(), settings, bar)
    for trial in trials if not options.quiet else ():
        print(printable(f"{trial.name}: {trial.outcome}: {trial.detail}"), file=sys.stderr)
    if options.announce:
        print(f"nanhunt report {options.out}")
    body = trace.note_of(NoteKind.ONSET)
    return Onset.from_json(body) if body else None


def _refuse_to_overwrite(options: ReplayOptions) -> None:
    """Refuse an existing trace as the writer does, but before the user's model is built, which may take minutes."""
    if _adds(options):
        return
    for path in (options.out, partial_path(options.out)):
        if path.exists() and not (options.force or options.dry_run):
            hint = f"`nanhunt report {path}` reads it; pass --force to overwrite it, or another name with --out"
            if options.reference is not None and path.suffix == ".parquet":
                hint += "; --trial restore-weights tries the reference on it"
            raise UsageError(f"--out {options.out}: {path} exists already", hint=hint)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: expected {_DEVICES}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected {_DEVICES}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise UsageError(f"--device {name}: torch sees {there} on this machine", hint="--device cpu replays without")
    return device


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an interrupt inside the body: Python would end at once and close nothing."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _accounted(out: Path, writer: TraceWriter, bar: Bar) -> Iterator[None]:
    """Add to whatever ends the body early where the trace lies; one without a step, of bad input, is removed."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if bar.last_step is None and isinstance(error, NanhuntError):
            writer.path.unlink(missing_ok=True)
            writer.partial.unlink(missing_ok=True)
            raise
        error.add_note(_reach(out, writer, bar))
        raise


def _reach(out: Path, writer: TraceWriter, bar: Bar) -> str:
    """Return where a trace lies that ended early, and how far it goes."""
    reach = "no step was finished" if bar.last_step is None else f"up to step {bar.last_step}"
    # a rank's own file lies in the folder `out`
    is_there = writer.path.exists() or writer.path.name != out.name
    return f"the trace so far ({reach}): {out if is_there else partial_path(out)}"


def _say(options: ReplayOptions, out: Path, run: TrainingRun, onset: Onset | None, bar: Bar) -> None:
    if not options.quiet:
        healthy = f"no fault found in steps {run.start_step} to {bar.last_step}"
        said = healthy if onset is None else f"step {onset.step}: {onset.detail}{_place(onset)}"
        original = original_run(Evidence(Trace.open(out)))
        follows = [f"the replay {told(original)}"] if original is not None else []
        # what is said of another run comes behind that it is one
        is_another = original is not None and original.is_another and onset is None
        for line in [*follows, said] if is_another else [said, *follows]:
            print(printable(line), file=sys.stderr)
        print(f"wrote {options.out}", file=sys.stderr)
    if options.announce:
        print(f"nanhunt report {options.out}")


def _place(onset: Onset) -> str:
    where = ".".join(part for part in (onset.module, onset.name) if part)
    parts = [onset.op, f"in {where}" if where else None, f"at {onset.source}" if onset.source else None]
    text = " ".join(p for p in parts if p)
    return f" ({text})" if text else ""
