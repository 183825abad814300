"""The README says what the repository holds: its RQ1 table is the committed one, its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_rq1_table_is_the_one_in_results():
    shown = README.split("<!-- rq1:start -->")[1].split("<!-- rq1:end -->")[0]
    committed = (ROOT / "results/mini/tables/rq1.md").read_text(encoding="utf-8")
    assert shown.strip() == committed.strip(), "README.md is behind results/mini: run `make readme`"


def test_every_relative_link_leads_to_a_file():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert len(targets) > 15
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_the_codeact_commands_shown_are_understood():
    from typer.testing import CliRunner

    from codeact_lib.cli import app

    for line in re.findall(r"^\.venv/bin/codeact (.+?)(?:\s+#.*)?$", README, re.MULTILINE):
        result = CliRunner().invoke(app, [line.split()[0], "--help"])
        flags = re.findall(r"--[a-z-]+", line)
        assert result.exit_code == 0 and all(flag in result.output for flag in flags), line


def test_the_trainer_snippet_trains_a_tiny_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    names = {
        "tokenizer": 0,  # a padding token id will do
        "model": LlamaForCausalLM(config),
        "args": TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
        ),
        "tokenized": [{"input_ids": list(range(1, n)), "labels": list(range(1, n))} for n in range(3, 19)],
    }
    exec(snippet, names)
    names["trainer"].train()
    assert names["trainer"].state.global_step == 2
