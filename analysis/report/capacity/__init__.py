"""The report of a family of runs that differ in size and seed."""
