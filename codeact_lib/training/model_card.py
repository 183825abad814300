"""The model card (README.md) beside the weights: which data, how selected, how packed, at what cost."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from codeact_lib.artifacts import atomic_write


def write_model_card(folder, report, *, base_model, revision=None, title="CodeACT model", data=None, arguments=None):
    """Write `folder`/README.md from a `TrainReport`; `data` and `arguments` are shown line by line as given."""
    environment = Environment(
        loader=PackageLoader("codeact_lib"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template("model_card.md.j2").render(
        report=report, base_model=base_model, revision=revision, title=title, data=data or {}, arguments=arguments or {}
    )
    with atomic_write(Path(folder) / "README.md") as file:
        file.write(card)
