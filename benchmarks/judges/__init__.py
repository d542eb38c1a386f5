"""Whether a judge agrees with people."""
