"""Result tables as one HTML page: figures, tables, verdicts."""
