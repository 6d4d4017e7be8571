"""The sources that a config file can name under `source:`; what they share is in `analysis.checkpoints.source`."""

from analysis.checkpoints.hub import HubRevisions, HubSubfolders
from analysis.checkpoints.local import LightningCheckpoint, LocalFolder, LocalFolders, RunFolder
from analysis.checkpoints.source import Checkpoint, CheckpointSource

__all__ = [
    "Checkpoint",
    "CheckpointSource",
    "HubRevisions",
    "HubSubfolders",
    "LightningCheckpoint",
    "LocalFolder",
    "LocalFolders",
    "RunFolder",
]
