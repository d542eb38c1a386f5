"""The loop on real preference data: every source of a local collection, in its native format where there is one."""
