"""`lewm models`: show, check, make and export model folders."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ActionOption,
    CameraOption,
    Crop,
    ElitesOption,
    HorizonOption,
    IterationsOption,
    Objective,
    ObjectiveOption,
    PeriodOption,
    Preset,
    SamplesOption,
    SettingOption,
    SolverChoice,
    SolverOption,
    StateOption,
    one_name,
    solver_settings,
)

if TYPE_CHECKING:
    from lewm_models.card import ModelCard
    from lewm_serve.cli.solver_comparison import Comparison

app = typer.Typer(
    help="List, show, verify, calibrate, set up, import, make and export models.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="A model folder, or an embedded model's name.")]
Destination = Annotated[Path, typer.Argument(help="The model folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")]
DataArgument = Annotated[
    Path | None,
    typer.Argument(help="A recording of any format, or data that `lewm train` prepared."),
]
RecordedEnvironmentOption = Annotated[
    str | None, typer.Option("--env", help="Record episodes in this environment instead.")
]
EpisodesOption = Annotated[int, typer.Option(min=2, help="Episodes to record.")]
EpisodeStepsOption = Annotated[int, typer.Option(min=15, help="Steps per episode.")]
EpisodesAndTrainingSeedOption = Annotated[
    int, typer.Option(min=0, max=2**31 - 1, help="Seed of the episodes and the training.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


@app.command("list")
def list_models(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Model folders, or folders of model folders; default: the embedded models."
        ),
    ] = None,
) -> None:
    """List models with their versions, frame sizes, latents and action blocks."""
    from lewm_models.card import CardError
    from lewm_models.checkpoint import PRETRAINED, model_folders

    rows, broken = [], []
    with _readable_errors():
        for folder in [found for path in paths or [PRETRAINED] for found in model_folders(path)]:
            try:
                rows.append(_row(folder))
            except (CardError, OSError) as error:
                broken.append(describe_error(error))
    _print_table(("name", "version", "frame", "latent", "action block", "folder"), rows)
    for line in broken:
        typer.echo(f"lewm models: {line}", err=True)
    if broken:
        raise typer.Exit(1)


@app.command()
def show(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show a model's card."""
    from lewm_models import checkpoint
    from lewm_models.card import read_card

    with _readable_errors():
        path = checkpoint.resolve_folder(folder)
        card = read_card(path / checkpoint.CARD_FILE).to_json()
        version = checkpoint.version(path)
    if as_json:
        import json

        typer.echo(json.dumps(card, indent=2))
    else:
        _print_table(("field", "value"), [("version", version), *_card_lines(card)])


@app.command()
def verify(folder: Folder) -> None:
    """Check that a model can be served: card, tensors, encoder, roll-outs, effect of actions."""
    from rich.console import Console

    from lewm_models.card import read_card
    from lewm_models.checkpoint import CARD_FILE, resolve_folder
    from lewm_models.verification import verify as findings

    console = Console(highlight=False)
    with _readable_errors():
        path = resolve_folder(folder)
        warnings: list[str] = []
        for finding in findings(path):
            warnings += finding.warnings
            console.print(f"[green]✓[/] {finding.check:10}", end="")
            console.print(finding.detail, markup=False, soft_wrap=True)
        card = read_card(path / CARD_FILE)
        _check_solver(card)
    _warn(*card.warnings, *warnings)


@app.command("import")
def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="A public checkpoint: a file of tensors, a folder, or a repository's folder in "
            "the cache of Hugging Face."
        ),
    ],
    destination: Destination,
    card: Annotated[
        Path | None, typer.Option(help="JSON file with statistics and bounds of actions.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A recording of the robot; statistics and bounds are computed from it."),
    ] = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    crop: Annotated[
        Crop | None,
        typer.Option(help="How frames that are not square became square in training."),
    ] = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(help="Two or more images of what the model sees; see docs/models.md."),
    ] = None,
    solver: Annotated[
        SolverChoice,
        typer.Option(
            help="The solver that the model plans with. auto compares the usual one with iCEM; "
            "keep measures nothing."
        ),
    ] = SolverChoice.AUTO,
    force: Force = False,
) -> None:
    """Make a model folder from a public checkpoint and the statistics that it lacks."""
    from rich.console import Console

    from lewm_serve.cli.import_checkpoint import ImportOptions
    from lewm_serve.cli.import_checkpoint import import_model as import_checkpoint

    with _readable_errors():
        _check_destination(destination, force)
        imported = import_checkpoint(
            ImportOptions(
                source=source,
                destination=destination,
                card=card,
                data=data,
                camera=one_name(camera, "--camera"),
                action=one_name(action, "--action"),
                crop=crop,
                frames=tuple(frames or ()),
                solver=solver,
            ),
            Console(stderr=True),
        )
    model_card = imported.card
    typer.echo(f"{destination}: {model_card.name}, version {imported.version}")
    if imported.comparison is not None:
        _print_comparison(imported.comparison, model_card, imported.frames)
    if unknown := model_card.provenance.get("unknown_settings"):
        _warn(f"config.json: unknown settings, without effect here: {', '.join(unknown)}")
    if ignored := model_card.provenance.get("ignored_tensors"):
        names = ", ".join(f"{name} ({count})" for name, count in ignored.items())
        _warn(f"tensors that do not belong to the model are left out: {names}")
    _warn(*model_card.warnings)


def _print_comparison(comparison: Comparison, card: ModelCard, frames: str) -> None:
    """What a plan takes with each solver, and which one the card holds."""
    rows = []
    for result in (comparison.usual, comparison.icem):
        shorter = result.at_equal_time
        rows.append(
            (
                f"{result.settings.name} {result.settings.samples} × {result.settings.iterations}",
                f"{result.plan_s:.3g} s",
                f"{result.full_cost:.6g}",
                f"{result.equal_cost:.6g} ({shorter.samples} × {shorter.iterations})",
                "in the card" if result.settings == card.solver else "",
            )
        )
    columns = ("solver", "a plan takes here", "mean cost", "mean cost at equal time", "")
    _print_table(columns, rows)
    typer.echo(
        f"{comparison.pairs} pairs of start and goal among {frames}, {comparison.backend}; "
        "--solver cem, icem or keep decides otherwise"
    )


@app.command()
def calibrate(
    folder: Folder,
    frames: Annotated[
        Path | None,
        typer.Argument(help="Usual frames: a recording, prepared data, or folders of images."),
    ] = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    env: Annotated[
        str | None, typer.Option(help="Collect frames in this environment instead.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to collect.")] = 300,
    episode_steps: EpisodeStepsOption = 150,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**31 - 1, help="Seed of the episodes; not the one of the training."
        ),
    ] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Measure what usual latents look like, on frames that the model was not trained on.

    FRAMES is a recording of any format (`lewm data inspect`), or data that `lewm train` prepared
    (OUTPUT/data), or a folder of PNG or JPEG images in the order of the numbers in their names, or
    a folder of such folders, one per episode. With a file `actions.npy` beside the images,
    (images - 1, action_dim) in the environment's units, the images are one step apart and surprise
    is calibrated too.
    """
    from dataclasses import asdict, replace
    from tempfile import TemporaryDirectory

    from rich.console import Console
    from rich.progress import track

    from lewm_models import checkpoint
    from lewm_models.calibration.calibrate import calibrate as measure
    from lewm_models.training.environment_source import EnvironmentSource
    from lewm_serve.cli.image_files import read_episodes, training_data_warnings
    from lewm_serve.cli.train import training_device

    with _readable_errors(), TemporaryDirectory() as collected:
        if (frames is None) == (env is None):
            raise ValueError("calibrate: expected either FRAMES or --env")
        path = checkpoint.resolve_folder(folder)
        loaded = checkpoint.load(path)
        model = loaded.model.to(training_device(device))
        if env is not None:
            recorded = EnvironmentSource.for_model(
                env,
                episodes=episodes,
                steps=episode_steps,
                seed=seed,
                config=loaded.card.config,
            )
            frames, source = Path(collected), asdict(recorded)
            recorded.prepare(frames, lambda done, total: None, lambda line: None)
        else:
            assert frames is not None
            source = {"frames": frames.resolve().name}
        if env is None:
            _warn(*training_data_warnings(frames, loaded.card))
        console = Console(stderr=True)
        episodes_with_progress = track(
            read_episodes(
                frames,
                loaded.card,
                camera=one_name(camera, "--camera"),
                action=one_name(action, "--action"),
            ),
            "episodes",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        card, reference = measure(model, loaded.card, episodes_with_progress)
        card = replace(card, provenance={**card.provenance, "calibration": source})
        checkpoint.write_calibration(path, card, reference)
        version = checkpoint.version(path)
    typer.echo(f"{path}: {card.name}, version {version}")
    calibration = asdict(card)["calibration"]
    counts = ("frames", "steps", "windows", "false_alarm_rate")
    limits = ("zscore_limit", "mahalanobis_limit", "surprise_limit", "sigreg_limit")
    rows = [(name, _text(calibration[name])) for name in (*counts, *limits)]
    _print_table(("calibration", "value"), rows)
    _warn(*card.warnings)


@app.command()
def distance(
    folder: Folder,
    data: DataArgument = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    env: RecordedEnvironmentOption = None,
    episodes: EpisodesOption = 1500,
    episode_steps: EpisodeStepsOption = 150,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: 9000.")] = None,
    seed: EpisodesAndTrainingSeedOption = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: runs/NAME-distance.")
    ] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(help="The objective that plan requests have by default from now on."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the distance from a latent to a goal, write it into the model, say how good it is.

    The model itself does not change. The same command continues a training that was interrupted.
    """
    from rich.console import Console

    from lewm_models.checkpoint import resolve_folder
    from lewm_serve.cli.distance import DistanceOptions, train_into

    with _readable_errors():
        if (data is None) == (env is None):
            raise ValueError("distance: expected either DATA or --env")
        options = DistanceOptions(
            folder=resolve_folder(folder),
            data=data,
            camera=one_name(camera, "--camera"),
            action=one_name(action, "--action"),
            environment=env,
            episodes=episodes,
            episode_steps=episode_steps,
            steps=steps,
            seed=seed,
            output=output,
            objective=objective,
            device=device,
        )
        card, version = train_into(options, Console(stderr=True))
    typer.echo(f"{options.folder}: {card.name}, version {version}")
    rows = [(name, _text(value)) for name, value in card.to_json()["distance"].items()]
    _print_table(("distance", "value"), rows)
    default = card.solver.objective or "latent"
    typer.echo(f"plan requests minimise by default: {default} (--objective changes it)")


@app.command()
def probe(
    folder: Folder,
    data: DataArgument = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    state: StateOption = None,
    period: PeriodOption = None,
    env: RecordedEnvironmentOption = None,
    episodes: EpisodesOption = 300,
    episode_steps: EpisodeStepsOption = 150,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the episodes.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Fit the probe that reads the named states from a latent, write it into the model.

    It is fitted to training episodes, and the table shows how good it is on held-out ones. The
    model itself does not change.
    """
    from lewm_models.checkpoint import resolve_folder
    from lewm_serve.cli.probe import NetworkOptions, fit_into
    from lewm_serve.cli.recorded_data import state_periods

    with _readable_errors():
        if (data is None) == (env is None):
            raise ValueError("probe: expected either DATA or --env")
        options = NetworkOptions(
            part="probe",
            folder=resolve_folder(folder),
            data=data,
            camera=one_name(camera, "--camera"),
            action=one_name(action, "--action"),
            state=one_name(state, "--state"),
            periods=state_periods(period),
            environment=env,
            episodes=episodes,
            episode_steps=episode_steps,
            seed=seed,
            device=device,
        )
        described, version = fit_into(options)
    typer.echo(f"{options.folder}: version {version}")
    columns = ("state", "R²", "mean error", "linear: R²", "mean error")
    values = (described.r2, described.error, described.ridge_r2, described.ridge_error)
    rows = zip(described.states, *(map(_text, part) for part in values), strict=True)
    _print_table(columns, rows)
    typer.echo(f"measured on {described.held_out_frames:,} held-out frames")


@app.command()
def decoder(
    folder: Folder,
    data: DataArgument = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    env: RecordedEnvironmentOption = None,
    episodes: EpisodesOption = 180,
    episode_steps: EpisodeStepsOption = 150,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1500,
    seed: EpisodesAndTrainingSeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train the decoder that shows latents as small pictures, write it into the model.

    The console shows what a plan imagines with it. The model and its version do not change.
    """
    from lewm_models.checkpoint import DECODER_FILE, resolve_folder
    from lewm_models.decoder.run import DecoderTraining
    from lewm_serve.cli.probe import NetworkOptions, train_decoder_into

    with _readable_errors():
        if (data is None) == (env is None):
            raise ValueError("decoder: expected either DATA or --env")
        options = NetworkOptions(
            part="decoder",
            folder=resolve_folder(folder),
            data=data,
            camera=one_name(camera, "--camera"),
            action=one_name(action, "--action"),
            state=None,
            periods={},
            environment=env,
            episodes=episodes,
            episode_steps=episode_steps,
            seed=seed,
            device=device,
        )
        described = train_decoder_into(options, DecoderTraining(steps=steps, seed=seed))
        size = (options.folder / DECODER_FILE).stat().st_size
    typer.echo(
        f"{options.folder / DECODER_FILE}: {size / 1e6:.1f} MB; mean error of a pixel "
        f"{described.error:.4f} of the full range, {described.mean_frame_error:.4f} by the mean "
        f"frame; measured on {described.held_out_frames:,} held-out frames"
    )


@app.command()
def solver(
    folder: Folder,
    name: SolverOption = None,
    samples: SamplesOption = None,
    iterations: IterationsOption = None,
    elites: ElitesOption = None,
    horizon: HorizonOption = None,
    objective: ObjectiveOption = None,
    setting: SettingOption = None,
) -> None:
    """Show a model's default solver settings, or write those that are given into its card.

    `lewm evaluate` has the same options: try settings there first.
    """
    from lewm_models import checkpoint
    from lewm_models.card import ModelCard, read_card

    with _readable_errors():
        path = checkpoint.resolve_folder(folder)
        card = read_card(path / checkpoint.CARD_FILE)
        given = solver_settings(
            solver=name,
            samples=samples,
            iterations=iterations,
            elites=elites,
            horizon=horizon,
            objective=objective,
            setting=setting,
        )
        if given:
            body = card.to_json()
            card = ModelCard.from_json(body | {"solver": body["solver"] | given})
            _check_solver(card)
            checkpoint.write_card(path, card)
        version = checkpoint.version(path)
    typer.echo(f"{path}: {card.name}, version {version}")
    rows = [(key, _text(value)) for key, value in card.to_json()["solver"].items()]
    _print_table(("solver", "value"), rows)


@app.command()
def init(
    destination: Destination,
    preset: Annotated[Preset, typer.Option(help="The architecture.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    force: Force = False,
) -> None:
    """Make a model of random weights for benchmarks. Its actions take effect."""
    from lewm_models import checkpoint
    from lewm_models.config import PRESETS
    from lewm_models.random_weights import random_card, random_model

    command = f"lewm models init --preset {preset} --seed {seed}"
    config = PRESETS[preset]
    with _readable_errors():
        _check_destination(destination, force)
        card = random_card(f"random-{preset}", config, {"command": command})
        version = checkpoint.save(destination, random_model(config, seed), card)
    typer.echo(f"{destination}: {card.name}, version {version}")


@app.command()
def export(
    folder: Folder,
    destination: Annotated[Path, typer.Argument(help="The folder to write.")],
    force: Force = False,
) -> None:
    """Write a model as ONNX files that run without this project, and check them."""
    from lewm_models import checkpoint
    from lewm_models.export.onnx_files import export_onnx

    with _readable_errors():
        _check_destination(destination, force)
        loaded = checkpoint.load(checkpoint.resolve_folder(folder))
        for path, finding in export_onnx(loaded, destination):
            typer.echo(f"{path}: {finding}")


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Print errors that the user can fix as one line on standard error; exit with code 1."""
    try:
        yield
    except (OSError, ValueError) as error:
        typer.echo(f"lewm models: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None


def _warn(*warnings: str) -> None:
    for warning in warnings:
        typer.echo(f"lewm models: warning: {warning}", err=True)


def _check_solver(card: ModelCard) -> None:
    from lewm_serve.registry.loading import check_solver
    from lewm_serve.registry.registry import ModelLoadError

    try:
        check_solver(card)
    except ModelLoadError as error:
        raise ValueError(str(error)) from error


def _row(folder: Path) -> tuple[str, ...]:
    from lewm_models import checkpoint
    from lewm_models.card import read_card

    card = read_card(folder / checkpoint.CARD_FILE)
    config = card.config
    return (
        card.name,
        checkpoint.version(folder),
        f"{config.image_size} px",
        str(config.latent_dim),
        f"{config.action_block} × {config.action_dim}",
        str(folder),
    )


def _check_destination(folder: Path, force: bool) -> None:
    from lewm_models.checkpoint import CheckpointError

    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, expected a folder")
    if not force and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: is not empty; --force writes into it anyway")


def _card_lines(card: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in card.items():
        if isinstance(value, dict) and value:
            yield from _card_lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(entry) for entry in value)
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)


def _print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    # In a pipe, one line per row, whatever its width.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
