"""Where snapshots come from: run folders, local folders, the hub; loading, audit, sweeps.

The sources that a config file can name under `source:` are imported here, so that their class names are enough.
"""

from analysis.checkpoints.hub import HubRepositories, HubRevisions, HubSubfolders
from analysis.checkpoints.local import LightningCheckpoint, LocalFolder, LocalFolders, RunFolder
from analysis.checkpoints.source import Checkpoint, CheckpointSource

__all__ = [
    "Checkpoint",
    "CheckpointSource",
    "HubRepositories",
    "HubRevisions",
    "HubSubfolders",
    "LightningCheckpoint",
    "LocalFolder",
    "LocalFolders",
    "RunFolder",
]
