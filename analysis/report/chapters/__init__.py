"""What one measure shows in the report."""
