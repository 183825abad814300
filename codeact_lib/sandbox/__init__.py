"""Run a program apart from everything else on this machine; knows nothing of EvalPlus."""

from codeact_lib.sandbox.run import choose_isolation, probe, probe_isolation, run_isolated

__all__ = ["choose_isolation", "probe", "probe_isolation", "run_isolated"]
