"""The words of a run's folder in one place: file names, phases, statuses, states, schema number.

Whoever writes, reads or reports records takes these names from here, so that a word cannot be spelt
in two ways.
"""

# Raised when a file's meaning changes; a reader refuses what is newer than itself.
SCHEMA = 1

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
WINDOWS_FILE = "windows.jsonl"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CHECKPOINTS_FOLDER = "checkpoints"
LOCK_FILE = ".lock"

# What a line of windows.jsonl can be a phase of, in the order in which tables show them.
PHASES = ("compile", "warmup", "train", "eval", "input", "checkpoint", "idle", "other")
# Not a phase that anything is ever in: what readers call windows that a rollback undid.
LOST = "lost"
ROLLBACK = "rollback"

# `status` of summary.json.
COMPLETED = "completed"
TARGET_REACHED = "target_reached"
PREEMPTED = "preempted"
FAILED = "failed"
STATUSES = (COMPLETED, TARGET_REACHED, PREEMPTED, FAILED)

# State of a folder, as a reader finds it. COMPLETED covers `target_reached`; UNFINISHED may be
# continued; a FOREIGN folder is not a run that this version can read.
UNFINISHED = "unfinished"
FOREIGN = "foreign"
STATES = (COMPLETED, UNFINISHED, FAILED, FOREIGN)
