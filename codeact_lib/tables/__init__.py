"""RQ1, RQ2 and the tables around them: what the paper reports, what was measured here, and how sure one can be.

    reported = load_reported()                               # results/reported/{rq1,rq2,followup}.csv
    metrics = load_metrics("results/mini/metrics")           # one record a run, written by 05_eval
    table = rq1_table(metrics, reported["rq1"])
    write_table(table, "results/mini/tables/rq1")            # .csv .md .tex .html .json

An arm is one row, the mean over its seeds: with counts, 95% intervals, benchmark versions, hardware and its run ids.
Reported and measured numbers never share a row.

| module | what it makes |
|---|---|
| ``measured`` | records read and checked, grouped by arm, as flat rows |
| ``cells`` | numbers as text, bold, marks on cells that must not be trusted |
| ``research_questions`` | RQ1, RQ2, all arms |
| ``ablations`` | the 2x2 split, other policies, sampling rates |
| ``comparisons`` | paired tests and findings in words |
| ``claims`` | the headline recomputed, the paper beside its follow-up |
| ``costs`` | ledger and break-even |
| ``frames`` | what the figures draw |
| ``facts`` | runs and provenance of the report |
"""

from codeact_lib.tables.ablations import arm_means, policy_table, rate_frame, rate_table, split_table
from codeact_lib.tables.cells import bold_marks, fits, mbpp_task_counts, percent_cell
from codeact_lib.tables.comparisons import comparison_table, findings
from codeact_lib.tables.costs import cost_table
from codeact_lib.tables.deviations import deviations_in_force
from codeact_lib.tables.facts import provenance, run_facts, run_groups
from codeact_lib.tables.frames import (
    cost_frame,
    efficiency_panels,
    padding_frame,
    pass_at_one_frame,
    reported_time_memory_frame,
    time_memory_frame,
)
from codeact_lib.tables.headline import derived_claims_table, followup_table, headline_table
from codeact_lib.tables.render import Table, write_table
from codeact_lib.tables.report import ReportFigure, write_report
from codeact_lib.tables.research_questions import arms_table, rq1_table, rq2_table
from codeact_lib.tables.results import (
    EFFICIENCY,
    HEADINGS,
    SCORES,
    benchmark_stamp,
    load_metrics,
    load_reported,
    measured_row,
)

__all__ = [
    "EFFICIENCY",
    "HEADINGS",
    "SCORES",
    "ReportFigure",
    "Table",
    "arm_means",
    "arms_table",
    "benchmark_stamp",
    "bold_marks",
    "comparison_table",
    "cost_frame",
    "cost_table",
    "derived_claims_table",
    "deviations_in_force",
    "efficiency_panels",
    "findings",
    "fits",
    "followup_table",
    "headline_table",
    "load_metrics",
    "load_reported",
    "mbpp_task_counts",
    "measured_row",
    "padding_frame",
    "pass_at_one_frame",
    "percent_cell",
    "policy_table",
    "provenance",
    "rate_frame",
    "rate_table",
    "reported_time_memory_frame",
    "rq1_table",
    "rq2_table",
    "run_facts",
    "run_groups",
    "split_table",
    "time_memory_frame",
    "write_report",
    "write_table",
]
