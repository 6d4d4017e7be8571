"""What is measured: one `Analysis` a file."""
