"""The ``codeact`` command. Every import of weight happens inside a command, so that ``codeact --help`` is instant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from codeact_lib.errors import CodeActError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Choose 40% of an instruction set, fine-tune on it with Dynamic Pack, score it, and print the paper's tables.

    First steps, from a clone of the repository:

    \b
        codeact plan                  what the default profile (mini) consists of, what is done
        codeact run                   run it: some ten minutes on two CPU cores, no network
        codeact run                   again: seconds, everything is skipped
        codeact profiles show paper   what the authors' set-up would be
    """,
)
mini_app = typer.Typer(no_args_is_help=True, help="The parts of the mini profile that were made ahead of time.")
profiles_app = typer.Typer(no_args_is_help=True, help="The profiles that ship with the package.")
bench_app = typer.Typer(
    no_args_is_help=True, help="Speed and memory, measured side by side in one run on this machine."
)
app.add_typer(mini_app, name="mini")
app.add_typer(bench_app, name="bench")
app.add_typer(profiles_app, name="profiles")

Profile = Annotated[str, typer.Option("--profile", "-p", help="Name of a profile, or path of your own .yaml file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a profile key; repeatable. The value is YAML."),
]
ArtifactsDir = Annotated[str, typer.Option(help="Where rebuildable files go [default: artifacts/PROFILE].")]
ResultsDir = Annotated[str, typer.Option(help="Where tables and metrics go [default: results/PROFILE].")]
Traceback = Annotated[bool, typer.Option("--traceback", help="On an error, show the whole traceback.")]


@app.command()
def run(
    profile: Profile = "mini",
    first: Annotated[str, typer.Option("--from", metavar="STAGE", help="Start at this stage, e.g. 04.")] = "",
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="STAGE", help="Only this stage, e.g. 06; repeatable.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            "--force",
            metavar="WHAT",
            help="Make anew although done: a stage (04), a data set, model or run_id, or all; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, change nothing.")] = False,
    set_: Set = None,
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Stream what the notebooks print.")] = False,
    traceback: Traceback = False,
):
    """Run every stage of a profile that is not done yet; after an interruption, run the same command again.

    Examples:

    \b
        codeact run                       the mini profile
        codeact run --dry-run             every stage with its plain papermill line
        codeact run --only 06             the tables and the report only
        codeact run --from 04 --verbose   from the training on, showing what the notebooks print
        codeact run --force 04            train again, and what then changes
        codeact run --set num_train_epochs=1 --set name=trial
                                          a variant, kept in artifacts/trial and results/trial
    """
    from codeact_lib import pipeline

    pipeline.run(
        **_call(profile, set_, artifacts_dir, results_dir),
        first=first,
        only=tuple(only or ()),
        force=tuple(force or ()),
        dry_run=dry_run,
        verbose=verbose,
        say=_say,
    )


@app.command()
def plan(
    profile: Profile = "mini",
    set_: Set = None,
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    traceback: Traceback = False,
):
    """Print the graph of stages and the state of each: done, missing, changed, damaged or stale code.

    Examples:

    \b
        codeact plan
        codeact plan --profile paper
    """
    from codeact_lib import pipeline

    tasks = pipeline.plan(**_call(profile, set_, artifacts_dir, results_dir))
    for line in pipeline.plan_lines(tasks):
        _say(line)


@profiles_app.command("list")
def list_profiles():
    """Name and description of each profile."""
    from codeact_lib.config import load_profile, profile_names

    for name in profile_names():
        profile = load_profile(name)
        _say(f"{name:12} {profile.description} ({len(profile.runs())} models to evaluate)")


@profiles_app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="Name of a profile, or path of a .yaml file.")] = "mini",
):
    """Print the commented file of a profile: copy it, change it, and run it with `--profile my.yaml`."""
    from codeact_lib.config import load_profile, profile_path

    load_profile(name)
    _say(profile_path(name).read_text(encoding="utf-8").rstrip("\n"))


@mini_app.command("build-base")
def build_base(
    output: Annotated[str, typer.Option(help="Folder to write the model to [default: the package's own].")] = "",
    traceback: Traceback = False,
):
    """Train the base model of the mini profile again, from the recipe on its card (about an hour on two cores)."""
    from codeact_lib.mini import base_model_dir, build_base_model

    folder = Path(output) if output else base_model_dir()
    build_base_model(folder)
    _say(f"base model written to {folder}")


@bench_app.command("ifd")
def bench_ifd(
    data: Annotated[str, typer.Argument(help="Instruction file whose rows are scored.")],
    response_column: Annotated[str, typer.Option(help="Its column of answers.")] = "output",
    rows: Annotated[int, typer.Option(help="How many rows, evenly spaced.")] = 200,
    size: Annotated[str, typer.Option(help="Shape of the random model: small, or 1.3b for a GPU.")] = "small",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, typer.Option(help="Slots of our batches [default: by device].")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of all contenders.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table [default: results/bench].")] = None,
    traceback: Traceback = False,
):
    """Our IFD scorer against a naive loop with a batch of one: speed and peak memory, on full-length and short rows."""
    from codeact_lib.bench.ifd import run_bench

    options = {"n_rows": rows, "size": size, "dtype": dtype, "tokens_per_batch": tokens_per_batch, "repeats": repeats}
    _say(f"written: {run_bench(data, response_column=response_column, folder=output, say=_say, **options)}")


def _call(profile, set_, artifacts_dir, results_dir):
    """The options every stage command shares, as the pipeline takes them (paths relative to the project root)."""
    if profile.endswith((".yaml", ".yml")):
        profile = _from_root(profile)
    overrides = _overrides(set_ or [])
    return {
        "profile": profile,
        "overrides": json.dumps(overrides) if overrides else "",
        "artifacts_dir": _from_root(artifacts_dir),
        "results_dir": _from_root(results_dir),
    }


def _from_root(path):
    """A path typed in the shell as one relative to the project root, where it lies inside: notebooks need that."""
    from codeact_lib.artifacts import project_root

    if not path:
        return ""
    absolute, root = Path(os.path.abspath(Path(path).expanduser())), project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _overrides(pairs):
    """``["num_train_epochs=1", "models=[a]"]`` as a dict; values are YAML, 5e-5 counts as a number."""
    import yaml

    overrides = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise CodeActError(f"--set {pair}: write it as key=value, e.g. --set num_train_epochs=1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CodeActError(f"--set {pair}: the value is not YAML: {' '.join(str(error).split())}") from error
        overrides[key.strip()] = _number(value)
    return overrides


def _number(value):
    """YAML reads 5e-5 as text; on a command line it can only be meant as a number."""
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _say(line):
    print(line, flush=True)


def main(arguments=None):
    """Run the command; an error a user can act on is one line, exit code 1, and a traceback only with --traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, prog_name="codeact")
    except (CodeActError, OSError) as error:
        if "--traceback" in arguments:
            print(getattr(error, "traceback", ""), file=sys.stderr)
            raise
        print(f"error: {error}", file=sys.stderr)
        for line in getattr(error, "details", []):
            print(f"    {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
