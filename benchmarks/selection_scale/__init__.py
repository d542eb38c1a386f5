"""What selecting from a large pool costs, beside the arithmetic that no selection can do without."""
