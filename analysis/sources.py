"""The sources that a config file can name under `source:`; what they share is in `analysis.checkpoints`."""

from analysis.checkpoints import Checkpoint, CheckpointSource
from analysis.hub import HubRevisions, HubSubfolders
from analysis.local import LightningCheckpoint, LocalFolder, LocalFolders, RunFolder

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
