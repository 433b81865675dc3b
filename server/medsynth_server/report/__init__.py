"""The report of a run: one HTML file, made from the run's record and nothing else."""

from medsynth_server.report.build import build_report

__all__ = ["build_report"]
