"""`medsynth-server audit-dp`: is the claimed epsilon true? An experiment on small trainings.

It stands at the server because only the coordinator's command line runs it; all that it trains
with comes from `medsynth_common`, the very private steps that hospitals take.
"""

from medsynth_server.audit_dp.audit import Audit, AuditSettings, run_audit
from medsynth_server.audit_dp.targets import Target
from medsynth_server.audit_dp.words import progress_bars, tell

__all__ = ["Audit", "AuditSettings", "Target", "progress_bars", "run_audit", "tell"]
