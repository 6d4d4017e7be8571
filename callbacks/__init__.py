"""Lightning callbacks: *when* to snapshot, measure and log. What is measured lives in `analysis`."""
