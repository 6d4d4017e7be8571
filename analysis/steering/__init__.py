"""Text with units held: conditions, generation, judgement, rows."""
