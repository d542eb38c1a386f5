"""Is a run that was killed, at any instant, the run that was not? `python -m benchmarks.resume --json out.json`."""
