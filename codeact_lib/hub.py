"""Models and data sets of the Hugging Face hub: the commit that a name means, and what went wrong, in plain words."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from codeact_lib.artifacts import read_cache, write_json
from codeact_lib.errors import DataError, ModelError

# A branch such as `main` moves. What a run loads is resolved once, to a commit, and kept in this file among its
# artifacts: every stage, every process and every machine that shares the folder then loads that commit, and its sha
# enters the keys and manifests of the stages. Without the file the branch is followed anew.
COMMITS_FILE = "hub_commits.json"
REASONS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
COMMIT = re.compile(r"[0-9a-f]{40}")

Source = tuple[str, str, str | None]  # a repository: kind ("model" or "dataset"), name, revision


def split_revision(name: str) -> tuple[str, str | None]:
    """`("org/model", "main")` of `org/model@main`; the revision is None where none is named, or for a path."""
    if Path(name).exists():
        return name, None
    path, _, revision = name.partition("@")
    return path, revision or None


def resolve_commit(name: str, revision: str | None = None, kind: str = "model") -> str:
    """The sha of the commit that `revision` (a branch, a tag, a sha; None: main) of a hub repository means now.

    Without a network, or with HF_HUB_OFFLINE set, the sha it had when it was last looked up on this machine. Raises
    ModelError (for `kind` "dataset" DataError) for a wrong name or revision, and when the hub cannot be asked.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError, RevisionResolutionError

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    hub = huggingface_hub.HfApi()
    try:
        return hub.resolve_revision(name, repo_type=kind, revision=revision, local_files_only=offline).resolved
    except (OSError, HTTPError, RevisionResolutionError, HFValidationError) as error:
        raise hub_error(error, name, revision, kind) from error


def pinned_revision(path: str | Path, revision: str | None = None, kind: str = "model") -> str | None:
    """The commit to load of a hub repository; None for a folder, which has no revisions."""
    return None if Path(path).exists() else resolve_commit(str(path), revision, kind)


def known_commits(path: Path, sources: Sequence[Source]) -> dict[str, str]:
    """label -> sha of the sources that are in the file or name a commit themselves; asks no network."""
    kept = read_cache(path)
    found = {}
    for source in sources:
        sha = kept.get(label(source), source[2])
        if sha and COMMIT.fullmatch(sha):
            found[label(source)] = sha
    return found


def resolve_commits(path: Path, sources: Sequence[Source]) -> dict[str, str]:
    """label -> sha of all sources; what was not known is asked for and kept. Of two processes the first counts."""
    known = known_commits(path, sources)
    found = {}
    for source in sources:
        if label(source) not in known:
            kind, name, revision = source
            found[label(source)] = resolve_commit(name, revision, kind)
    if found:
        # Read again: while the hub was asked, another process may have written, and what it found counts.
        write_json(path, found | read_cache(path))
    return known_commits(path, sources)


def label(source: Source) -> str:
    """`model org/name@main`: what a source is called in the file, in keys and in manifests."""
    kind, name, revision = source
    return f"{kind} {name}@{revision or 'main'}"


def hub_error(
    error: BaseException, name: str | Path, revision: str | None = None, kind: str = "model"
) -> DataError | ModelError:
    """The ModelError or DataError that says what `error` of a hub client means and what to do.

    `kind`: "model", "tokenizer", "embedding model" or "dataset". `error` may be any exception of huggingface_hub,
    transformers, datasets or sentence-transformers.
    """
    from huggingface_hub import constants

    # They wrap the hub's own errors in an OSError that says less: what can be acted on may stand anywhere in the chain.
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    if constants.HF_HUB_OFFLINE:
        names.add("HF_HUB_OFFLINE")
    text = "\n".join(map(str, chain))
    reason = (text.strip() or type(error).__name__).splitlines()[0]
    facts = {"name": name, "revision": revision, "kind": kind, "hub": constants.ENDPOINT}
    facts["page"] = f"{constants.ENDPOINT}/{name}"
    command = f"hf download {name}"
    if kind == "dataset":
        facts["page"] = f"{constants.ENDPOINT}/datasets/{name}"
        command += " --repo-type dataset"
    facts["download"] = f"`{command}` where there is a network fills the cache (HF_HOME), which may be copied here"
    for row in REASONS:
        known = names.intersection(row["errors"]) or re.search(row["words"], text)
        if known and (row.get("local") or not Path(name).exists()):
            reason = row["reason"].format(**facts)
            break
    if kind == "dataset":
        return DataError(f"cannot load a data set from {name}: {reason}")
    article = "an" if kind.startswith("e") else "a"
    return ModelError(f"cannot load {article} {kind} from {name}: {reason}")
