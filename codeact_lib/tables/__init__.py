"""RQ1, RQ2 and the tables around them: what the paper reports, what was measured here, and how sure one can be.

    reported = load_reported()                               # results/reported/{rq1,rq2,followup}.csv
    metrics = load_metrics("results/mini/metrics")           # one record a run, written by 05_eval
    table = rq1_table(metrics, reported["rq1"])
    write_table(table, "results/mini/tables/rq1")            # .csv .md .tex .html .json

An arm is one row, the mean over its seeds: with counts, 95% intervals, benchmark versions, hardware and its run ids.
Reported and measured numbers never share a row.
"""

from importlib import import_module
from typing import Any

from codeact_lib.tables.ablations import policy_table, rate_table, split_table
from codeact_lib.tables.cells import bold_marks, fits, percent_cell
from codeact_lib.tables.comparisons import (
    comparison_table,
    derived_claims_table,
    findings,
    followup_table,
    headline_table,
)
from codeact_lib.tables.costs import cost_table
from codeact_lib.tables.frames import (
    cost_frame,
    efficiency_panels,
    padding_frame,
    pass_at_one_frame,
    reported_time_memory_frame,
    time_memory_frame,
)
from codeact_lib.tables.render import Cell, Column, Table, values, words, write_table
from codeact_lib.tables.report import ReportFigure, provenance, run_facts, run_groups, write_report
from codeact_lib.tables.research_questions import arms_table, rq1_table, rq2_table
from codeact_lib.tables.results import EFFICIENCY, HEADINGS, benchmark_stamp, load_metrics, load_reported


def __getattr__(name: str) -> Any:
    """`deviations_in_force`, on first use: `python -m codeact_lib.tables.deviations` would load its module twice."""
    if name == "deviations_in_force":
        return import_module("codeact_lib.tables.deviations").deviations_in_force
    raise AttributeError(f"module 'codeact_lib.tables' has no attribute {name!r}")
