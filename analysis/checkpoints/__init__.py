"""Where snapshots come from: run folders, local folders, the hub; loading, audit, sweeps."""
